//! Compares the tensors of a file with those of its decoder.

use std::collections::BTreeMap;

use super::refuse_all;
use crate::base::{Code, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::stored;
use crate::model::gguf::{Gguf, quoted};

/// Lists every tensor that is missing, has another shape, or is not part of the model. A tensor
/// that were ignored would change the model.
pub(super) fn check(gguf: &Gguf, spec: &DecoderSpec) -> Result<()> {
    let mut shapes: BTreeMap<&str, &[u64]> = BTreeMap::new();
    for tensor in &gguf.tensors {
        shapes.insert(tensor.name, &tensor.shape);
    }
    let mut errors = vec![];
    for tensor in stored(spec) {
        // A missing embedding is read as one with 0 rows. Expect 1 row, so that it does not match.
        let shape: Vec<u64> = tensor
            .shape()
            .iter()
            .map(|extent| (*extent).max(1))
            .collect();
        let name = &tensor.name;
        match shapes.remove(name.as_str()) {
            Some(found) if found == shape => {}
            Some(found) => errors.push(format!(
                "`{name}`: expected shape {shape:?}, found {found:?}"
            )),
            None => errors.push(format!("`{name}`: expected shape {shape:?}, not there")),
        }
    }
    for name in shapes.into_keys() {
        errors.push(format!(
            "{}: no tensor of a `{}` model that kiln can build",
            quoted(name),
            spec.architecture
        ));
    }
    refuse_all(
        Code::ModelTensors,
        "the tensors are not those of the model that the metadata describe",
        errors,
    )
}
