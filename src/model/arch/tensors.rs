//! The tensors that a model must have, and their shapes.

use std::collections::BTreeMap;

use super::{Architecture, refuse_all};
use crate::base::Result;
use crate::model::facts::ModelFacts;
use crate::model::gguf::{Gguf, quoted};

/// Tells every tensor that is missing, has another shape, or has no place in the model: left out in
/// silence, it would make another model of it.
pub fn check(gguf: &Gguf, architecture: &Architecture, facts: &ModelFacts) -> Result<()> {
    let mut found: BTreeMap<&str, &[u64]> = gguf
        .tensors
        .iter()
        .map(|t| (t.name, t.shape.as_slice()))
        .collect();
    let mut wrong = vec![];
    for (name, shape) in expected(facts, architecture) {
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
            facts.architecture
        ),
    }));
    refuse_all(
        "kiln::model::tensors",
        "the tensors are not those of the model that the metadata describe",
        wrong,
    )
}

/// Name and shape of every tensor, `[rows, columns]` or `[n]`.
fn expected(facts: &ModelFacts, architecture: &Architecture) -> Vec<(String, Vec<u64>)> {
    let [hidden, ffn, vocab] = [facts.hidden, facts.ffn, facts.vocab].map(u64::from);
    let [q, kv] =
        [facts.heads, facts.kv_heads].map(|heads| u64::from(heads) * u64::from(facts.head_dim));
    let mut all = vec![
        // No rows at all is what a missing embedding reads as: ask for one then, which nothing
        // has.
        ("token_embd.weight".to_string(), vec![vocab.max(1), hidden]),
        ("output_norm.weight".to_string(), vec![hidden]),
    ];
    if !facts.tied_embeddings {
        all.push(("output.weight".to_string(), vec![vocab, hidden]));
    }
    for layer in 0..facts.block_count {
        let mut add =
            |name: &str, shape: &[u64]| all.push((format!("blk.{layer}.{name}"), shape.to_vec()));
        add("attn_norm.weight", &[hidden]);
        for (name, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
            add(&format!("{name}.weight"), &[rows, hidden]);
            if facts.qkv_bias || architecture.needs_qkv_bias {
                add(&format!("{name}.bias"), &[rows]);
            }
        }
        add("attn_output.weight", &[hidden, q]);
        add("ffn_norm.weight", &[hidden]);
        add("ffn_gate.weight", &[ffn, hidden]);
        add("ffn_up.weight", &[ffn, hidden]);
        add("ffn_down.weight", &[hidden, ffn]);
    }
    all
}
