//! One spelling for a value: JSON with sorted keys and no white space. What is hashed, stored,
//! compared and sent is this text.

use std::fmt::{self, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Problem, Result};

/// The canonical text of `value`: keys sorted by their bytes, no white space, numbers as serde_json
/// spells them (the shortest text that reads back as the same number).
pub fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value);
    out
}

fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_scalar(out, &Value::String(key.clone()));
                out.push(':');
                write_value(out, &map[key]);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_value(out, item);
            }
            out.push(']');
        }
        scalar => write_scalar(out, scalar),
    }
}

fn write_scalar(out: &mut String, value: &Value) {
    // Invariant: writing to a String cannot fail.
    let _ = write!(out, "{value}");
}

/// A small JSON object whose canonical text takes part in keys: the facts of a part.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CanonJson(Value);

impl CanonJson {
    /// The facts that `value` spells.
    pub fn of<T: Serialize>(value: &T) -> Result<Self> {
        serde_json::to_value(value)
            .map(CanonJson)
            .map_err(|error| Problem::new("kiln::facts", format!("facts are not JSON: {error}")))
    }

    /// Reads the facts as a `T`.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.0)
            .map_err(|error| Problem::new("kiln::facts", format!("unexpected facts: {error}: {self}")))
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
        CanonJson(value)
    }
}

impl fmt::Display for CanonJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&canonical(&self.0))
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
        let value = json!({"b": [1, 2.5, {"z": null, "a": "x\"y"}], "a": true});
        assert_eq!(canonical(&value), r#"{"a":true,"b":[1,2.5,{"a":"x\"y","z":null}]}"#);
    }
}
