//! Writes the header of a GGUF: version 3, little-endian. The caller streams the data after it.

use std::io::{self, Write};

use super::{MAGIC, Metadata, Value};
use crate::base::{Code, Context, Problem, Result};
use crate::model::quant::GgmlType;

const VERSION: u32 = 3;

/// Metadata and tensors of a file.
pub struct Header<'a> {
    /// Tensors begin at multiples of it: `general.alignment`, or the default.
    pub alignment: u32,
    /// The key-value pairs, in the order of the file.
    pub pairs: Vec<(&'a str, Value<'a>)>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<Entry<'a>>,
}

/// A tensor that will be written.
pub struct Entry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Outermost dimension first.
    pub shape: &'a [u64],
    /// Its type in the file.
    pub ggml: &'static GgmlType,
}

impl Entry<'_> {
    /// Bytes of its data.
    pub fn bytes(&self) -> Result<u64> {
        match self.checked_bytes() {
            Some(bytes) => Ok(bytes),
            None => Err(invalid(format!(
                "tensor `{}`: {:?} is no shape of {}",
                self.name, self.shape, self.ggml.name
            ))),
        }
    }

    fn checked_bytes(&self) -> Option<u64> {
        let row = self.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.ggml.block_len) {
            return None;
        }
        let mut values = 1u64;
        for extent in self.shape {
            values = values.checked_mul(*extent)?;
        }
        self.ggml.bytes(values)
    }

    fn put(&self, out: &mut impl Write, offset: u64) -> io::Result<()> {
        put_string(out, self.name)?;
        out.write_all(&(self.shape.len() as u32).to_le_bytes())?;
        for extent in self.shape.iter().rev() {
            out.write_all(&extent.to_le_bytes())?;
        }
        out.write_all(&self.ggml.id.to_le_bytes())?;
        out.write_all(&offset.to_le_bytes())
    }
}

impl<'a> Header<'a> {
    /// A file with all `metadata` and no tensor yet.
    pub fn new(metadata: &Metadata<'a>, alignment: u32) -> Self {
        Header {
            alignment,
            pairs: metadata.pairs().to_vec(),
            tensors: vec![],
        }
    }

    /// Number of padding bytes after `bytes` bytes.
    pub fn padding(&self, bytes: u64) -> u64 {
        bytes.next_multiple_of(self.alignment.into()) - bytes
    }

    /// Writes everything before the data of the first tensor. The caller must write the padding
    /// after the data of each tensor.
    pub fn write(&self, out: &mut impl Write) -> Result<()> {
        let mut out = Counted { out, bytes: 0 };
        self.put(&mut out)
            .context(Code::Io, || "write the header of a GGUF".into())?;
        let mut offset = 0u64;
        for tensor in &self.tensors {
            let bytes = tensor.bytes()?;
            tensor
                .put(&mut out, offset)
                .context(Code::Io, || "write the header of a GGUF".into())?;
            let Some(next) = offset.checked_add(bytes + self.padding(bytes)) else {
                return Err(invalid(
                    "the tensors together have more than 2^64 bytes".into(),
                ));
            };
            offset = next;
        }
        let zeros = vec![0; self.padding(out.bytes) as usize];
        out.write_all(&zeros)
            .context(Code::Io, || "write the header of a GGUF".into())
    }

    fn put(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&(self.tensors.len() as u64).to_le_bytes())?;
        out.write_all(&(self.pairs.len() as u64).to_le_bytes())?;
        for (key, value) in &self.pairs {
            put_string(out, key)?;
            out.write_all(&(value.value_type() as u32).to_le_bytes())?;
            put_value(out, value)?;
        }
        Ok(())
    }
}

fn invalid(message: String) -> Problem {
    Problem::new(Code::ModelGgufTensor, message)
}

/// Counts the bytes that are written.
struct Counted<'a, W> {
    out: &'a mut W,
    bytes: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn put_string(out: &mut impl Write, text: &str) -> io::Result<()> {
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(text.as_bytes())
}

fn put_value(out: &mut impl Write, value: &Value) -> io::Result<()> {
    match value {
        Value::U8(v) => out.write_all(&[*v]),
        Value::I8(v) => out.write_all(&v.to_le_bytes()),
        Value::U16(v) => out.write_all(&v.to_le_bytes()),
        Value::I16(v) => out.write_all(&v.to_le_bytes()),
        Value::U32(v) => out.write_all(&v.to_le_bytes()),
        Value::I32(v) => out.write_all(&v.to_le_bytes()),
        Value::U64(v) => out.write_all(&v.to_le_bytes()),
        Value::I64(v) => out.write_all(&v.to_le_bytes()),
        Value::F32(v) => out.write_all(&v.to_le_bytes()),
        Value::F64(v) => out.write_all(&v.to_le_bytes()),
        Value::Bool(v) => out.write_all(&[u8::from(*v)]),
        Value::Str(v) => put_string(out, v),
        Value::Array(array) => {
            out.write_all(&(array.element as u32).to_le_bytes())?;
            out.write_all(&(array.len as u64).to_le_bytes())?;
            for value in array.iter() {
                put_value(out, &value)?;
            }
            Ok(())
        }
    }
}
