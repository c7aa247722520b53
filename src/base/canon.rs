//! Canonical JSON: sorted keys and no white space. This text is hashed, stored, compared and sent.
//! It is how [`Value`] prints: its maps are sorted by the bytes of their keys, its numbers are the
//! shortest text that reads back as the same number.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Code, Problem, Result};

/// A small JSON object whose canonical text is part of action keys: the facts of a part. Cheap to
/// clone, since hundreds of actions may share it.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CanonJson(Arc<Value>);

impl CanonJson {
    /// Serializes `value`.
    pub fn of<T: Serialize>(value: &T) -> Result<Self> {
        match serde_json::to_value(value) {
            Ok(value) => Ok(value.into()),
            Err(error) => Err(Problem::new(
                Code::Facts,
                format!("facts are not JSON: {error}"),
            )),
        }
    }

    /// Deserializes the value as a `T`.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&*self.0).map_err(|error| {
            Problem::new(Code::Facts, format!("unexpected facts: {error}: {self}"))
        })
    }

    /// The value of one field.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field)
    }

    /// The JSON value.
    pub fn value(&self) -> &Value {
        &self.0
    }
}

impl From<Value> for CanonJson {
    fn from(value: Value) -> Self {
        CanonJson(Arc::new(value))
    }
}

impl fmt::Display for CanonJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for CanonJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_sorted_at_every_depth() {
        // Fails if a dependency enables serde_json's `preserve_order`.
        let value = json!({"b": [1, 2.5, {"z": null, "a": "x\"y"}], "a": true});
        assert_eq!(
            CanonJson::from(value).to_string(),
            r#"{"a":true,"b":[1,2.5,{"a":"x\"y","z":null}]}"#
        );
    }

    #[test]
    fn numbers_keep_their_text() {
        // Fails without serde_json's `float_roundtrip`: values read from the cache would not be
        // those that were put there.
        for index in 0..20_000u64 {
            let bits = index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2;
            let text = json!(f64::from_bits(bits)).to_string();
            let read: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(read.to_string(), text);
        }
    }
}
