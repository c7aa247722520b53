//! The weights of a decoder, by tensor, and the check that they are complete.

use std::collections::BTreeMap;

use crate::base::{CanonJson, Code, Digest, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::{Role, by_name};
use crate::model::weight::{Stored, StoredWeight, stored};

/// All weights of a model by their GGUF names.
#[derive(Default)]
pub(super) struct Weights {
    by_name: BTreeMap<String, Stored>,
}

impl Weights {
    /// Combines parts called `NAME/codes` and so on into weights.
    pub(super) fn new<'a>(
        parts: impl Iterator<Item = (&'a str, &'a CanonJson, Digest)>,
    ) -> Result<Self> {
        Ok(Weights {
            by_name: stored(parts)?,
        })
    }

    /// The weight `name`, if there is one; after [`Weights::check`].
    pub(super) fn get(&self, name: &str) -> Option<&StoredWeight> {
        self.by_name.get(name)?.as_ref().ok()
    }

    /// Refuses an embedding whose rows cannot be looked up.
    pub(super) fn check_lookup(&self) -> Result<()> {
        let name = Role::Embedding.weight();
        let Some(weight) = self.get(&name) else {
            return Ok(());
        };
        let columns = weight.shape.last().copied().unwrap_or(0);
        if weight.encoding.added_columns(columns).is_none() {
            return Ok(());
        }
        let encoding = weight.encoding;
        Err(Problem::new(
            Code::GraphWeights,
            format!("`{name}` is an embedding: rows cannot be looked up in {encoding}"),
        )
        .help("choose another scheme for it in the `requant` stage, for example `native`"))
    }

    /// Reports all weights that are missing, invalid, of another shape or unknown, in one problem.
    pub(super) fn check(&self, model: &DecoderSpec) -> Result<()> {
        let needed = by_name(model);
        let mut wrong: Vec<String> = vec![];
        for (name, tensor) in &needed {
            let shape = &tensor.shape;
            match self.by_name.get(name) {
                None => wrong.push(format!("`{name}` {shape:?} is missing")),
                Some(Err(why)) => wrong.push(format!("`{name}`: {why}")),
                Some(Ok(weight)) if weight.shape != *shape => wrong.push(format!(
                    "`{name}` has shape {:?}, expected {shape:?}",
                    weight.shape
                )),
                Some(Ok(_)) => {}
            }
        }
        for name in self.by_name.keys() {
            if !needed.contains_key(name) {
                let architecture = &model.architecture;
                wrong.push(format!(
                    "`{name}` has no place in a `{architecture}` decoder"
                ));
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let count = wrong.len();
        Err(Problem::new(
            Code::GraphWeights,
            format!(
                "{count} of the weights do not fit the model: {}",
                wrong.join("; ")
            ),
        )
        .help(
            "`model` and `weights` must come from the same file; `kiln inspect` shows what it \
             holds",
        ))
    }
}
