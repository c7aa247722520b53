//! The key-value pairs of a GGUF, with typed access.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use super::reader::Reader;
use super::value::{Array, Value};
use crate::base::{Code, Problem, Result};

/// Most keys of a file; real ones have about 30.
const MAX_KEYS: u64 = 1 << 16;

/// Longest key, by the GGUF specification.
const MAX_KEY_BYTES: usize = (1 << 16) - 1;

/// Bytes of the shortest pair: a length, one letter, a type, one byte.
const SMALLEST_PAIR: u64 = 8 + 1 + 4 + 1;

/// The metadata of a file.
#[derive(Debug, Default)]
pub struct Metadata<'a> {
    /// In the order of the file.
    pairs: Vec<(&'a str, Value<'a>)>,
    by_key: BTreeMap<&'a str, usize>,
}

/// One object, in the order of the keys.
impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'a> Metadata<'a> {
    /// Reads `claimed` pairs.
    pub fn read(reader: &mut Reader<'a>, claimed: u64) -> Result<Self> {
        let count = reader.count(claimed, SMALLEST_PAIR, MAX_KEYS, "metadata keys")?;
        let mut metadata = Metadata::default();
        for index in 0..count {
            let key = reader.string().map_err(|problem| {
                problem.within(format!("failed to read metadata key {index}"))
            })?;
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return Err(invalid(format!(
                    "metadata key {index} has {} bytes; expected 1 to {MAX_KEY_BYTES}",
                    key.len()
                )));
            }
            let value = Value::read(reader).map_err(|problem| {
                problem.within(format!("failed to read metadata key {}", quoted(key)))
            })?;
            if metadata.by_key.contains_key(key) {
                return Err(invalid(format!("metadata key {} twice", quoted(key))));
            }
            metadata.push(key, value);
        }
        Ok(metadata)
    }

    fn push(&mut self, key: &'a str, value: Value<'a>) {
        self.by_key.insert(key, self.pairs.len());
        self.pairs.push((key, value));
    }

    /// The pairs whose key `keep` accepts, in the same order.
    pub fn retain(self, mut keep: impl FnMut(&str) -> bool) -> Self {
        let mut kept = Metadata::default();
        for (key, value) in self.pairs {
            if keep(key) {
                kept.push(key, value);
            }
        }
        kept
    }

    /// All pairs, in the order of the file.
    pub fn pairs(&self) -> &[(&'a str, Value<'a>)] {
        &self.pairs
    }

    /// All pairs, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &Value<'a>)> {
        self.by_key
            .values()
            .map(|index| (self.pairs[*index].0, &self.pairs[*index].1))
    }

    /// The value of `key` as a `T`; `None` if the key is missing, a problem if it has another type.
    pub fn get<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>> {
        let Some(index) = self.by_key.get(key) else {
            return Ok(None);
        };
        let value = &self.pairs[*index].1;
        match T::from_value(value) {
            Some(typed) => Ok(Some(typed)),
            None => Err(invalid(format!(
                "metadata key {}: expected {}, found {}",
                quoted(key),
                T::NAME,
                value.described()
            ))),
        }
    }

    /// The value of `key` as a `T`; a problem if the key is missing or has another type.
    pub fn require<T: FromValue<'a>>(&self, key: &str) -> Result<T> {
        match self.get(key)? {
            Some(value) => Ok(value),
            None => Err(invalid(format!(
                "metadata key {} is missing; expected {}",
                quoted(key),
                T::NAME
            ))),
        }
    }
}

fn invalid(message: String) -> Problem {
    Problem::new(Code::ModelGgufKey, message)
}

/// `key` between backticks, without control characters, not too long for a message.
pub fn quoted(key: &str) -> String {
    format!("`{}`", Value::Str(key))
}

/// A type that a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// Its name in messages.
    const NAME: &'static str;

    /// `value` as this type; `None` if it has another type or is out of range.
    fn from_value(value: &Value<'a>) -> Option<Self>;
}

impl<'a> FromValue<'a> for Value<'a> {
    const NAME: &'static str = "a value";

    fn from_value(value: &Value<'a>) -> Option<Self> {
        Some(*value)
    }
}

impl<'a> FromValue<'a> for u32 {
    const NAME: &'static str = "an integer from 0 to 4294967295";

    fn from_value(value: &Value<'a>) -> Option<Self> {
        value.integer()?.try_into().ok()
    }
}

impl<'a> FromValue<'a> for f32 {
    const NAME: &'static str = "a finite f32";

    fn from_value(value: &Value<'a>) -> Option<Self> {
        match value {
            Value::F32(value) if value.is_finite() => Some(*value),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for bool {
    const NAME: &'static str = "a bool";

    fn from_value(value: &Value<'a>) -> Option<Self> {
        if let Value::Bool(value) = value {
            Some(*value)
        } else {
            None
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const NAME: &'static str = "a string";

    fn from_value(value: &Value<'a>) -> Option<Self> {
        if let Value::Str(value) = value {
            Some(value)
        } else {
            None
        }
    }
}

impl<'a> FromValue<'a> for Array<'a> {
    const NAME: &'static str = "an array";

    fn from_value(value: &Value<'a>) -> Option<Self> {
        if let Value::Array(value) = value {
            Some(*value)
        } else {
            None
        }
    }
}

/// A number, or an array with the same number for every layer.
pub struct Uniform(pub u32);

impl<'a> FromValue<'a> for Uniform {
    const NAME: &'static str = "an integer, or an array of the same integer for every layer";

    fn from_value(value: &Value<'a>) -> Option<Self> {
        let Value::Array(array) = value else {
            return u32::from_value(value).map(Uniform);
        };
        let mut uniform = None;
        for value in array.iter() {
            let number = u32::from_value(&value)?;
            if uniform.is_some_and(|uniform| uniform != number) {
                return None;
            }
            uniform = Some(number);
        }
        uniform.map(Uniform)
    }
}
