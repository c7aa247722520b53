//! GGUF, versions 2 and 3, little-endian: a reader for files that nobody vouches for.
//!
//! ```text
//! "GGUF"  version u32  tensors u64  keys u64
//! keys x    { key string, type u32, value }
//! tensors x { name string, dims u32, dim u64 ..., type u32, offset u64 }     padded to general.alignment
//! data, each tensor padded likewise
//! ```
//!
//! Every limit of ggml's own reader holds (`ggml/src/gguf.cpp`), and counts are capped. What it allocates is a map entry a
//! key and a list entry a tensor, at most 2^16 of each: strings and arrays stay in the file.

mod metadata;
mod reader;
mod summary;
mod tensor;
mod value;

pub use metadata::{FromValue, Metadata, Uniform, quoted};
pub use summary::{Scalars, Summary, Under};
pub use tensor::TensorInfo;
pub use value::{Array, Value, ValueType};

use crate::base::{Problem, Result};
use reader::Reader;

/// What a GGUF begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";

const DEFAULT_ALIGNMENT: u32 = 32;

/// Largest alignment: a greater one only serves overflows (llama.cpp pull request 24997).
const MAX_ALIGNMENT: u32 = 1 << 20;

/// A checked file: every tensor lies inside it, none overlaps another.
#[derive(Debug)]
pub struct Gguf<'a> {
    /// 2 or 3.
    pub version: u32,
    /// Tensors begin at multiples of it.
    pub alignment: u32,
    /// The key-value pairs.
    pub metadata: Metadata<'a>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorInfo<'a>>,
    file: &'a [u8],
}

impl<'a> Gguf<'a> {
    /// Reads the header of `file` and checks it against the whole.
    pub fn parse(file: &'a [u8]) -> Result<Self> {
        Gguf::parse_header(file, file.len() as u64)
    }

    /// The same, with only the first bytes of a file of `file_bytes` at hand; [`Gguf::data`] is empty for what lies beyond.
    pub fn parse_header(file: &'a [u8], file_bytes: u64) -> Result<Self> {
        let mut reader = Reader::new(file);
        let version = read_version(&mut reader)?;
        let tensor_count = reader.u64()?;
        let key_count = reader.u64()?;
        let metadata = Metadata::read(&mut reader, key_count)?;
        refuse_split(&metadata)?;
        let alignment = read_alignment(&metadata)?;
        let mut tensors = TensorInfo::read_all(&mut reader, tensor_count, alignment.into())?;
        let data_offset = (reader.position() as u64).next_multiple_of(alignment.into());
        TensorInfo::place_all(&mut tensors, data_offset, file_bytes)?;
        Ok(Gguf { version, alignment, metadata, tensors, file })
    }

    /// The bytes of one of its tensors.
    pub fn data(&self, tensor: &TensorInfo) -> &'a [u8] {
        let range = tensor.range.start as usize..tensor.range.end as usize;
        self.file.get(range).unwrap_or_default()
    }
}

fn read_version(reader: &mut Reader) -> Result<u32> {
    let unsupported = |what: String| Problem::new("kiln::model::gguf_version", what);
    let magic: [u8; 4] = reader.array()?;
    if magic != MAGIC {
        return Err(Problem::new(
            "kiln::model::gguf_magic",
            format!("not a GGUF: it begins with {:?}", magic.escape_ascii().to_string()),
        ));
    }
    match reader.u32()? {
        version @ (2 | 3) => Ok(version),
        1 => Err(unsupported("GGUF version 1, whose lengths have 32 bits".into())
            .help("make the file again with a present llama.cpp, which does not read version 1 either")),
        // gguf.cpp tells the byte order the same way.
        version if version & 0xffff == 0 => {
            Err(unsupported(format!("a big-endian GGUF (version {})", version.swap_bytes()))
                .help("convert it with llama.cpp's gguf-py/gguf/scripts/gguf_convert_endian.py"))
        }
        version => Err(unsupported(format!("GGUF version {version}; kiln reads versions 2 and 3"))),
    }
}

fn read_alignment(metadata: &Metadata) -> Result<u32> {
    let alignment = match metadata.get::<Value>("general.alignment")? {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(alignment)) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => {
            return Ok(alignment);
        }
        Some(other) => other,
    };
    Err(Problem::new(
        "kiln::model::gguf_alignment",
        format!(
            "`general.alignment` is {}; expected a u32, a power of two up to {MAX_ALIGNMENT}",
            alignment.described()
        ),
    ))
}

fn refuse_split(metadata: &Metadata) -> Result<()> {
    let parts = metadata.get::<u32>("split.count")?.unwrap_or(0);
    if parts <= 1 {
        return Ok(());
    }
    let number =
        metadata.get::<u32>("split.no")?.map_or("one".to_string(), |index| format!("number {}", index as u64 + 1));
    Err(Problem::new("kiln::model::gguf_split", format!("this file is {number} of the {parts} parts of a split model"))
        .help("join them first: llama-gguf-split --merge FIRST-PART OUTPUT"))
}
