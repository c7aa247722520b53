//! The summary of a GGUF and its model: as text for people, as JSON for programs.

use std::collections::BTreeMap;
use std::fmt;

use serde::ser::{Serialize, Serializer};

use super::decoder::{DecoderSpec, ModelFacts, RopeRows};
use super::gguf::{ByteOrder, Gguf, Metadata, Value};
use super::tokenizer::{MODEL_NAME, is_phi3};
use crate::base;

/// The text of `summary.txt` and `kiln inspect`.
pub struct Summary<'a> {
    /// The file.
    pub gguf: &'a Gguf<'a>,
    /// The model, if kiln supports its architecture.
    pub model: Option<&'a ModelFacts>,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { gguf, model } = self;
        if let Ok(Some(name)) = gguf.metadata.get::<Value>("general.name") {
            writeln!(f, "{name}")?;
        }
        let mut weights = 0u64;
        for tensor in &gguf.tensors {
            weights = weights.saturating_add(tensor.values());
        }
        let order = if gguf.order == ByteOrder::Big {
            ", big-endian"
        } else {
            ""
        };
        let files = match gguf.file_count() {
            1 => String::new(),
            count => format!(" in {count} files"),
        };
        let Gguf {
            version, tensors, ..
        } = gguf;
        writeln!(
            f,
            "GGUF version {version}{order}, {} tensors{files}, {weights} weights",
            tensors.len()
        )?;
        if let Some(model) = model {
            write_model(f, model)?;
        }
        write_types(f, gguf)?;
        writeln!(f, "\nmetadata")?;
        for (key, value) in gguf.metadata.iter() {
            writeln!(f, "  {}  {value}", Value::Str(key))?;
        }
        Ok(())
    }
}

fn write_model(f: &mut fmt::Formatter<'_>, model: &ModelFacts) -> fmt::Result {
    let rows = match model.rope_rows {
        RopeRows::Interleaved => "interleaved",
        RopeRows::HalfSplit => "half-split",
    };
    let head = if model.tied_embeddings {
        "the embedding"
    } else {
        "a matrix of its own"
    };
    let bias = if model.qkv_bias {
        "on q, k and v"
    } else {
        "none"
    };
    let ModelFacts {
        heads,
        kv_heads,
        head_dim,
        ..
    } = model;
    let lines = [
        ("architecture", model.architecture.clone()),
        ("layers", model.block_count.to_string()),
        ("hidden", model.hidden.to_string()),
        ("feed-forward", model.ffn.to_string()),
        (
            "attention",
            format!("{heads} heads of {head_dim} over {kv_heads} of keys and values"),
        ),
        ("vocabulary", model.vocab.to_string()),
        ("head", head.into()),
        ("biases", bias.into()),
        ("context", model.context_length.to_string()),
        (
            "RoPE",
            format!("base {}, rows {rows}", model.rope_freq_base),
        ),
        ("RMSNorm", format!("epsilon {:e}", model.rms_epsilon)),
    ];
    writeln!(f, "\nmodel")?;
    for (name, value) in lines {
        writeln!(f, "  {name:<14}{value}")?;
    }
    if let Ok(spec) = DecoderSpec::try_from(model.clone()) {
        for difference in spec.differences() {
            writeln!(f, "  {:<14}{difference}", "in addition")?;
        }
    }
    Ok(())
}

/// Tensors, weights and bytes of each type, most bytes first.
fn write_types(f: &mut fmt::Formatter<'_>, gguf: &Gguf) -> fmt::Result {
    let mut types: BTreeMap<&str, (usize, u64, u64)> = BTreeMap::new();
    for tensor in &gguf.tensors {
        let (count, weights, bytes) = types.entry(tensor.ggml.name).or_default();
        *count += 1;
        *weights = weights.saturating_add(tensor.values());
        *bytes += tensor.range.end - tensor.range.start;
    }
    let mut types: Vec<_> = types.into_iter().collect();
    types.sort_by_key(|(name, (_, _, bytes))| (std::cmp::Reverse(*bytes), *name));
    writeln!(f, "\ntypes      tensors       weights       size")?;
    for (name, (count, weights, bytes)) in types {
        writeln!(
            f,
            "  {name:<8}{count:>8}{weights:>14}{:>11}",
            base::bytes(bytes)
        )?;
    }
    Ok(())
}

/// The pairs that a tokenizer is made of, as one JSON object: those below `tokenizer.`, and the
/// name of a Phi-3, whose special tokens follow from it.
pub struct TokenizerKeys<'a>(pub &'a Metadata<'a>);

impl Serialize for TokenizerKeys<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(key, value)| match value {
            Value::Str(name) if *key == MODEL_NAME => is_phi3(name),
            _ => key.starts_with("tokenizer."),
        }))
    }
}

/// The pairs that are no array and do not belong to the tokenizer, as one JSON object.
pub struct Scalars<'a>(pub &'a Metadata<'a>);

impl Serialize for Scalars<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(key, value)| {
            !key.starts_with("tokenizer.") && !matches!(value, Value::Array(_))
        }))
    }
}
