//! Graphs of which the CPU computes an end.

use kiln::action::{Manifest, PartName};
use serde_json::{Value, json};

/// Parameters of a graph in so many shards, its ends placed so.
pub fn placed(place: Value, shards: u32) -> Value {
    json!({"prefill": 16, "context": 40, "shards": shards, "place": place})
}

/// Both ends on the CPU.
pub fn both() -> Value {
    json!({"embedding": "cpu", "head": "cpu"})
}

/// The names of all parts.
pub fn names(manifest: &Manifest) -> Vec<&str> {
    manifest.parts.keys().map(PartName::as_str).collect()
}
