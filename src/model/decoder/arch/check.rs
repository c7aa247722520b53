//! The tensors of a file against those of its decoder.

use std::collections::BTreeMap;

use super::refuse_all;
use crate::base::{Code, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::tensors;
use crate::model::gguf::{Gguf, quoted};

/// Tells every tensor that is missing, has another shape, or has no place in the model: left out in
/// silence, it would make another model of it.
pub fn check(gguf: &Gguf, spec: &DecoderSpec) -> Result<()> {
    let mut found: BTreeMap<&str, &[u64]> = gguf
        .tensors
        .iter()
        .map(|t| (t.name, t.shape.as_slice()))
        .collect();
    let mut wrong = vec![];
    for tensor in tensors(spec) {
        // A missing embedding reads as one without rows: ask for a row then, which nothing has.
        let shape: Vec<u64> = tensor.shape.iter().map(|extent| (*extent).max(1)).collect();
        let name = &tensor.name;
        match found.remove(name.as_str()) {
            Some(found) if found == shape => {}
            Some(found) => wrong.push(format!(
                "`{name}`: expected shape {shape:?}, found {found:?}"
            )),
            None => wrong.push(format!("`{name}`: expected shape {shape:?}, not there")),
        }
    }
    wrong.extend(found.into_keys().map(|name| match name {
        "rope_freqs.weight" => format!("`{name}`: RoPE with frequency factors is not supported"),
        _ => format!(
            "{}: no tensor of a `{}` model that kiln can build",
            quoted(name),
            spec.architecture
        ),
    }));
    refuse_all(
        Code::ModelTensors,
        "the tensors are not those of the model that the metadata describe",
        wrong,
    )
}
