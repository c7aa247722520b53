//! The weights that a decoder needs, and whether they are all there.

use std::collections::BTreeMap;

use crate::base::{CanonJson, Code, Digest, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::by_name;
use crate::model::weight::{Stored, StoredWeight, stored};

/// All weights of a model by their GGUF names.
#[derive(Default)]
pub(super) struct Weights {
    by_name: BTreeMap<String, Stored>,
}

impl Weights {
    /// Puts parts called `NAME/codes` ... together.
    pub(super) fn new<'a>(
        parts: impl Iterator<Item = (&'a str, &'a CanonJson, Digest)>,
    ) -> Result<Self> {
        Ok(Weights {
            by_name: stored(parts)?,
        })
    }

    /// The weight `name`, if there is one. They have been checked.
    pub(super) fn get(&self, name: &str) -> Option<&StoredWeight> {
        self.by_name.get(name)?.as_ref().ok()
    }

    /// All that is missing, misshapen or not understood, in one problem.
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
        let unused = self
            .by_name
            .keys()
            .filter(|name| !needed.contains_key(*name));
        wrong.extend(unused.map(|name| {
            format!(
                "`{name}` has no place in a `{}` decoder",
                model.architecture
            )
        }));
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
