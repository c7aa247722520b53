//! Metadata values. Strings and arrays stay in the file; nothing is allocated for them.

use std::fmt;

use serde::ser::{Serialize, SerializeSeq, Serializer};

use super::reader::{ByteOrder, Reader};
use crate::base::{Code, Problem, Result};

/// Longest array, as in gguf.cpp (`GGUF_MAX_ARRAY_ELEMENTS`).
const MAX_ARRAY_LEN: u64 = 1 << 30;

/// Characters of a string that messages and summaries show.
const SHOWN_CHARS: usize = 80;

/// A metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
}

/// The type of a value, with its number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    fn by_id(id: u32) -> Result<ValueType> {
        use ValueType::*;
        const ALL: [ValueType; 13] = [
            U8, I8, U16, I16, U32, I32, F32, Bool, Str, Array, U64, I64, F64,
        ];
        match ALL.get(id as usize) {
            Some(value_type) => Ok(*value_type),
            None => Err(Problem::new(
                Code::ModelGgufValue,
                format!("unknown value type {id}"),
            )),
        }
    }

    /// Bytes of the smallest value of this type. Only strings and arrays differ in size.
    fn min_bytes(self) -> u64 {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 | ValueType::Str => 8,
            ValueType::Array => 12,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ValueType::Str => "string",
            ValueType::Array => "array",
            ValueType::Bool => "bool",
            number => return write!(f, "{}", format!("{number:?}").to_lowercase()),
        })
    }
}

/// An array, as it is in the file. Every element was checked when it was read.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    /// The type of its elements; never an array.
    pub element: ValueType,
    /// How many there are.
    pub len: usize,
    bytes: &'a [u8],
    order: ByteOrder,
}

impl<'a> Array<'a> {
    /// The bytes of its elements in the file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (element, mut reader) = (self.element, Reader::new(self.bytes, self.order));
        (0..self.len).map_while(move |_| Value::read_as(&mut reader, element).ok())
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let element = ValueType::by_id(reader.u32()?)?;
        if element == ValueType::Array {
            return Err(Problem::new(
                Code::ModelGgufValue,
                "an array of arrays, which ggml does not read either",
            ));
        }
        let claimed = reader.u64()?;
        let len = reader.count(
            claimed,
            element.min_bytes(),
            MAX_ARRAY_LEN,
            "array elements",
        )?;
        let start = reader.position();
        match element {
            ValueType::Str => reader.skip_strings(len)?,
            ValueType::Bool => {
                for _ in 0..len {
                    Value::read_as(reader, element)?;
                }
            }
            number => {
                reader.take(len as u64 * number.min_bytes())?;
            }
        }
        Ok(Array {
            element,
            len,
            bytes: reader.since(start),
            order: reader.order(),
        })
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "array of {} {}", self.len, self.element)
    }
}

impl<'a> Value<'a> {
    /// Reads a type and a value of that type.
    pub fn read(reader: &mut Reader<'a>) -> Result<Self> {
        let ty = ValueType::by_id(reader.u32()?)?;
        Value::read_as(reader, ty)
    }

    fn read_as(reader: &mut Reader<'a>, ty: ValueType) -> Result<Self> {
        Ok(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(reader.number()?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(reader.number()?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(reader.number()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(reader.number()?)),
            ValueType::U32 => Value::U32(reader.u32()?),
            ValueType::I32 => Value::I32(i32::from_le_bytes(reader.number()?)),
            ValueType::U64 => Value::U64(reader.u64()?),
            ValueType::I64 => Value::I64(i64::from_le_bytes(reader.number()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(reader.number()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(reader.number()?)),
            ValueType::Str => Value::Str(reader.string()?),
            ValueType::Array => Value::Array(Array::read(reader)?),
            ValueType::Bool => match reader.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(Problem::new(
                        Code::ModelGgufValue,
                        format!("a bool of {other}; expected 0 or 1"),
                    ));
                }
            },
        })
    }

    /// Its type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) => ValueType::Str,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// Type and value, for messages: `u32 7`, `array of 2 i32`.
    pub fn described(&self) -> String {
        match self {
            Value::Array(_) => self.to_string(),
            scalar => format!("{} {scalar}", scalar.value_type()),
        }
    }

    /// The number, if it is an integer of any width.
    pub fn integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }
}

/// For messages and summaries: long strings are truncated, control characters are escaped, and of
/// an array only type and length are shown.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Str(text) => {
                let shown: String = text.chars().take(SHOWN_CHARS).collect();
                let dots = if shown.len() < text.len() { " ..." } else { "" };
                for c in shown.chars() {
                    match c {
                        '"' | '\'' => write!(f, "{c}")?,
                        _ => write!(f, "{}", c.escape_debug())?,
                    }
                }
                f.write_str(dots)
            }
            Value::Array(array) => write!(f, "{array:?}"),
            Value::F32(value) => value.fmt(f),
            Value::F64(value) => value.fmt(f),
            Value::Bool(value) => value.fmt(f),
            integer => write!(f, "{}", integer.integer().unwrap_or_default()),
        }
    }
}

/// As JSON: strings and arrays in full; a number that is not finite is null.
impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::U8(v) => v.serialize(serializer),
            Value::I8(v) => v.serialize(serializer),
            Value::U16(v) => v.serialize(serializer),
            Value::I16(v) => v.serialize(serializer),
            Value::U32(v) => v.serialize(serializer),
            Value::I32(v) => v.serialize(serializer),
            Value::U64(v) => v.serialize(serializer),
            Value::I64(v) => v.serialize(serializer),
            Value::F32(v) => v.serialize(serializer),
            Value::F64(v) => v.serialize(serializer),
            Value::Bool(v) => v.serialize(serializer),
            Value::Str(v) => v.serialize(serializer),
            Value::Array(array) => {
                let mut seq = serializer.serialize_seq(Some(array.len))?;
                for value in array.iter() {
                    seq.serialize_element(&value)?;
                }
                seq.end()
            }
        }
    }
}
