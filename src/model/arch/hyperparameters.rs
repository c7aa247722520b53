//! The numbers of a model, from the keys `ARCHITECTURE.*`.

use super::{Architecture, refuse_all};
use crate::base::Result;
use crate::model::facts::ModelFacts;
use crate::model::gguf::{FromValue, Gguf, Metadata, Uniform, Value};

/// Most layers, as in llama.cpp (`LLAMA_MAX_LAYERS`).
const MAX_LAYERS: u32 = 512;

/// What llama.cpp takes where a file does not say.
const DEFAULT_ROPE_FREQ_BASE: f32 = 10000.0;

/// Reads them all and tells everything that is wrong at once.
pub fn read(gguf: &Gguf, architecture: &Architecture) -> Result<ModelFacts> {
    let mut keys = Keys {
        metadata: &gguf.metadata,
        prefix: architecture.name,
        wrong: vec![],
    };
    let block_count = keys.count("block_count");
    let hidden = keys.count("embedding_length");
    let heads = keys.count("attention.head_count");
    let kv_heads = keys
        .optional::<Uniform>("attention.head_count_kv")
        .map_or(heads, |uniform| uniform.0);
    let head_dim = keys
        .optional::<u32>("attention.key_length")
        .unwrap_or(hidden.checked_div(heads).unwrap_or(0));
    let facts = ModelFacts {
        architecture: architecture.name.into(),
        block_count,
        hidden,
        ffn: keys.count("feed_forward_length"),
        heads,
        kv_heads,
        head_dim,
        vocab: rows(gguf, "token_embd.weight"),
        context_length: keys.count("context_length"),
        rms_epsilon: keys
            .require("attention.layer_norm_rms_epsilon")
            .unwrap_or_default(),
        rope_freq_base: keys
            .optional("rope.freq_base")
            .unwrap_or(DEFAULT_ROPE_FREQ_BASE),
        rope_rows: architecture.rope_rows,
        qkv_bias: rows(gguf, "blk.0.attn_q.bias") > 0,
        tied_embeddings: rows(gguf, "output.weight") == 0,
    };
    keys.check(block_count <= MAX_LAYERS, || {
        format!("{block_count} layers; at most {MAX_LAYERS} are allowed")
    });
    keys.check_heads(&facts);
    keys.check_extras(&facts);
    refuse_all(
        "kiln::model::hyperparameters",
        "the metadata do not describe a model that kiln can build",
        keys.wrong,
    )?;
    Ok(facts)
}

/// Outermost dimension of a tensor; 0 if it is not there.
fn rows(gguf: &Gguf, name: &str) -> u32 {
    let tensor = gguf.tensors.iter().find(|tensor| tensor.name == name);
    tensor
        .and_then(|tensor| u32::try_from(*tensor.shape.first()?).ok())
        .unwrap_or(0)
}

/// The keys of one architecture, and what is wrong with them.
struct Keys<'a> {
    metadata: &'a Metadata<'a>,
    prefix: &'static str,
    wrong: Vec<String>,
}

impl<'a> Keys<'a> {
    fn require<T: FromValue<'a>>(&mut self, key: &str) -> Option<T> {
        let value = self.metadata.require(&format!("{}.{key}", self.prefix));
        value
            .map_err(|problem| self.wrong.push(problem.to_string()))
            .ok()
    }

    fn optional<T: FromValue<'a>>(&mut self, key: &str) -> Option<T> {
        let value = self.metadata.get(&format!("{}.{key}", self.prefix));
        value
            .map_err(|problem| self.wrong.push(problem.to_string()))
            .ok()
            .flatten()
    }

    /// A number above zero, the same for every layer; 0 once something is wrong.
    fn count(&mut self, key: &str) -> u32 {
        let Some(Uniform(count)) = self.require(key) else {
            return 0;
        };
        self.check(count > 0, || format!("`{key}` is 0"));
        count
    }

    fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(otherwise());
        }
    }

    fn check_heads(&mut self, facts: &ModelFacts) {
        let ModelFacts {
            hidden,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *facts;
        if heads == 0 || hidden == 0 {
            return;
        }
        let says_width = self.optional::<u32>("attention.key_length").is_some();
        self.check(says_width || hidden % heads == 0, || {
            format!("hidden {hidden} is no multiple of {heads} heads")
        });
        self.check(head_dim > 0 && head_dim % 2 == 0, || {
            format!("head width {head_dim}; RoPE wants an even one")
        });
        self.check(kv_heads > 0 && heads % kv_heads == 0, || {
            format!("{heads} query heads cannot share {kv_heads} heads of keys and values")
        });
        for key in ["attention.value_length", "rope.dimension_count"] {
            let width = self.optional(key).unwrap_or(head_dim);
            self.check(width == head_dim, || {
                format!("`{key}` is {width}, but heads are {head_dim} wide")
            });
        }
    }

    /// Keys that would change what the model computes.
    fn check_extras(&mut self, facts: &ModelFacts) {
        let ModelFacts {
            rms_epsilon,
            rope_freq_base,
            ..
        } = *facts;
        self.check(rms_epsilon >= 0.0, || {
            format!("the epsilon of RMSNorm is {rms_epsilon}")
        });
        self.check(rope_freq_base > 0.0, || {
            format!("the base of RoPE is {rope_freq_base}")
        });
        let scaling: &str = self.optional("rope.scaling.type").unwrap_or("none");
        self.check(scaling == "none", || {
            format!("RoPE scaling {} is not supported", Value::Str(scaling))
        });
        for key in ["rope.scaling.factor", "rope.scale_linear"] {
            let factor = self.optional::<f32>(key).unwrap_or(1.0);
            self.check(factor == 1.0 || factor == 0.0, || {
                format!("RoPE scaling (`{key}` {factor}) is not supported")
            });
        }
        for (key, what) in [
            ("attention.sliding_window", "a sliding window"),
            ("expert_count", "a mixture of experts"),
        ] {
            let count: u32 = self.optional(key).unwrap_or(0);
            self.check(count == 0, || {
                format!("{what} (`{key}` {count}) is not supported")
            });
        }
        let vocab = self.optional("vocab_size").unwrap_or(facts.vocab);
        self.check(vocab == facts.vocab, || {
            format!(
                "`vocab_size` is {vocab}, but the embedding has {} rows",
                facts.vocab
            )
        });
        let causal = self.optional("attention.causal").unwrap_or(true);
        self.check(causal, || {
            "attention that is not causal is not supported".into()
        });
        let scale: Option<f32> = self.optional("attention.scale");
        self.check(scale.is_none(), || {
            "an attention scale of its own (`attention.scale`) is not supported".into()
        });
    }
}
