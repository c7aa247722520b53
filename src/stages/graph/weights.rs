//! The weights that a decoder needs, and whether they are all there.

use std::collections::BTreeMap;

use crate::base::{CanonJson, Digest, Problem, Result};
use crate::model::facts::ModelFacts;
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
    pub(super) fn check(&self, model: &ModelFacts) -> Result<()> {
        let needed = needed(model);
        let mut wrong: Vec<String> = vec![];
        for (name, shape) in &needed {
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
            "kiln::graph::weights",
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

/// The tensors of a llama or qwen2 decoder under GGUF's names, and their shapes `[rows, columns]`
/// or `[n]`.
fn needed(model: &ModelFacts) -> BTreeMap<String, Vec<u64>> {
    let [hidden, ffn, vocab] = [model.hidden, model.ffn, model.vocab].map(u64::from);
    let queries = u64::from(model.heads) * u64::from(model.head_dim);
    let keys = u64::from(model.kv_heads) * u64::from(model.head_dim);
    let mut needed = BTreeMap::from([
        ("token_embd.weight".to_string(), vec![vocab, hidden]),
        ("output_norm.weight".to_string(), vec![hidden]),
    ]);
    if !model.tied_embeddings {
        needed.insert("output.weight".into(), vec![vocab, hidden]);
    }
    for layer in 0..model.block_count {
        let mut layer_needs = vec![
            ("attn_norm.weight", vec![hidden]),
            ("attn_q.weight", vec![queries, hidden]),
            ("attn_k.weight", vec![keys, hidden]),
            ("attn_v.weight", vec![keys, hidden]),
            ("attn_output.weight", vec![hidden, queries]),
            ("ffn_norm.weight", vec![hidden]),
            ("ffn_gate.weight", vec![ffn, hidden]),
            ("ffn_up.weight", vec![ffn, hidden]),
            ("ffn_down.weight", vec![hidden, ffn]),
        ];
        if model.qkv_bias {
            layer_needs.extend([
                ("attn_q.bias", vec![queries]),
                ("attn_k.bias", vec![keys]),
                ("attn_v.bias", vec![keys]),
            ]);
        }
        needed.extend(
            layer_needs
                .into_iter()
                .map(|(name, shape)| (format!("blk.{layer}.{name}"), shape)),
        );
    }
    needed
}
