//! The keys `ARCHITECTURE.*` of a file, and the plain decoder that they describe.

use std::collections::BTreeSet;

use super::refuse_all;
use crate::base::{Code, Result};
use crate::model::decoder::tensors::Role;
use crate::model::decoder::{DecoderSpec, Embedding, Head, Layer, MAX_LAYERS, Rotary};
use crate::model::facts::RopeRows;
use crate::model::gguf::{FromValue, Gguf, Uniform, Value};

/// What llama.cpp takes where a file does not say.
const DEFAULT_ROPE_FREQ_BASE: f32 = 10000.0;

/// The keys of one architecture, and what is wrong with them.
pub struct Keys<'a> {
    gguf: &'a Gguf<'a>,
    prefix: &'static str,
    /// The keys that were asked for.
    read: BTreeSet<String>,
    wrong: Vec<String>,
}

impl<'a> Keys<'a> {
    /// Those of `gguf` that begin with `prefix`.
    pub fn new(gguf: &'a Gguf<'a>, prefix: &'static str) -> Self {
        Keys {
            gguf,
            prefix,
            read: BTreeSet::new(),
            wrong: vec![],
        }
    }

    /// The value of `key`. What must be there and is not, is wrong.
    pub fn require<T: FromValue<'a>>(&mut self, key: &str) -> Option<T> {
        let full = self.full(key);
        let value = self.gguf.metadata.require(&full);
        value
            .map_err(|problem| self.wrong.push(problem.to_string()))
            .ok()
    }

    /// The value of `key`, if it is there.
    pub fn optional<T: FromValue<'a>>(&mut self, key: &str) -> Option<T> {
        let full = self.full(key);
        let value = self.gguf.metadata.get(&full);
        value
            .map_err(|problem| self.wrong.push(problem.to_string()))
            .ok()
            .flatten()
    }

    /// Whether the file has the tensor `name`.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.rows(name) > 0
    }

    /// The plain decoder of the file: all its layers have `qkv_bias` and turn all columns of a
    /// head, whose rows are laid out as `layout` says. An architecture changes what is otherwise.
    pub fn plain(&mut self, layout: RopeRows, qkv_bias: bool) -> DecoderSpec {
        let block_count = self.count("block_count");
        let hidden = self.count("embedding_length");
        let heads = self.count("attention.head_count");
        let kv_heads = self
            .optional::<Uniform>("attention.head_count_kv")
            .map_or(heads, |uniform| uniform.0);
        let key_length = self.optional::<u32>("attention.key_length");
        let head_dim = key_length.unwrap_or(hidden.checked_div(heads).unwrap_or(0));
        let ffn = self.count("feed_forward_length");
        let context_length = self.count("context_length");
        let rms_epsilon = self
            .require("attention.layer_norm_rms_epsilon")
            .unwrap_or_default();
        let base = self
            .optional("rope.freq_base")
            .unwrap_or(DEFAULT_ROPE_FREQ_BASE);
        self.check(block_count <= MAX_LAYERS, || {
            format!("{block_count} layers; at most {MAX_LAYERS} are allowed")
        });
        let is_known = heads > 0 && hidden > 0;
        self.check(
            !is_known || key_length.is_some() || hidden.is_multiple_of(heads),
            || format!("hidden {hidden} is no multiple of {heads} heads"),
        );
        let rotary = Rotary {
            layout,
            dims: head_dim,
            base,
        };
        DecoderSpec {
            architecture: self.prefix.into(),
            context_length,
            vocab: self.rows(&Role::Embedding.weight()),
            hidden,
            ffn,
            heads,
            kv_heads,
            head_dim,
            rms_epsilon,
            embedding: Embedding::default(),
            layers: vec![Layer::plain(rotary, qkv_bias); block_count.min(MAX_LAYERS) as usize],
            head: Head {
                tied: !self.has_tensor(&Role::Head.weight()),
                scale: None,
                soft_cap: None,
            },
        }
    }

    /// Refuses what is wrong with the keys of `spec`, all at once, and every key that nobody has
    /// read and that would change what the model computes.
    pub fn finish(mut self, spec: &DecoderSpec) -> Result<()> {
        self.check_heads(spec);
        self.check_numbers(spec);
        self.check_unread(spec);
        refuse_all(
            Code::ModelHyperparameters,
            "the metadata do not describe a model that kiln can build",
            self.wrong,
        )
    }

    fn full(&mut self, key: &str) -> String {
        self.read.insert(key.into());
        format!("{}.{key}", self.prefix)
    }

    /// The value of `key`, if it is there and nobody has read it.
    fn unread<T: FromValue<'a>>(&mut self, key: &str) -> Option<T> {
        if self.read.contains(key) {
            return None;
        }
        self.optional(key)
    }

    /// A number above zero, the same for every layer; 0 once something is wrong.
    fn count(&mut self, key: &str) -> u32 {
        let Some(Uniform(count)) = self.require(key) else {
            return 0;
        };
        self.check(count > 0, || format!("`{key}` is 0"));
        count
    }

    /// Outermost dimension of a tensor; 0 if it is not there.
    fn rows(&self, name: &str) -> u32 {
        let mut tensors = self.gguf.tensors.iter();
        let tensor = tensors.find(|tensor| tensor.name == name);
        tensor
            .and_then(|tensor| u32::try_from(*tensor.shape.first()?).ok())
            .unwrap_or(0)
    }

    fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(otherwise());
        }
    }

    fn check_heads(&mut self, spec: &DecoderSpec) {
        let DecoderSpec {
            hidden,
            heads,
            kv_heads,
            head_dim,
            ..
        } = *spec;
        if heads == 0 || hidden == 0 {
            return;
        }
        self.check(head_dim > 0 && head_dim % 2 == 0, || {
            format!("head width {head_dim}; RoPE wants an even one")
        });
        self.check(kv_heads > 0 && heads % kv_heads == 0, || {
            format!("{heads} query heads cannot share {kv_heads} heads of keys and values")
        });
        for key in ["attention.value_length", "rope.dimension_count"] {
            let width = self.unread(key).unwrap_or(head_dim);
            self.check(width == head_dim, || {
                format!("`{key}` is {width}, but heads are {head_dim} wide")
            });
        }
    }

    fn check_numbers(&mut self, spec: &DecoderSpec) {
        let epsilon = spec.rms_epsilon;
        self.check(epsilon >= 0.0, || {
            format!("the epsilon of RMSNorm is {epsilon}")
        });
        let rotaries = spec
            .layers
            .iter()
            .filter_map(|layer| layer.attention.rotary.as_ref());
        let mut bases = rotaries.map(|rotary| rotary.base);
        if let Some(base) = bases.find(|base| *base <= 0.0) {
            self.wrong.push(format!("the base of RoPE is {base}"));
        }
    }

    /// Keys that would change what the model computes.
    fn check_unread(&mut self, spec: &DecoderSpec) {
        let scaling: &str = self.unread("rope.scaling.type").unwrap_or("none");
        self.check(scaling == "none", || {
            format!("RoPE scaling {} is not supported", Value::Str(scaling))
        });
        for key in ["rope.scaling.factor", "rope.scale_linear"] {
            let factor = self.unread::<f32>(key).unwrap_or(1.0);
            self.check(factor == 1.0 || factor == 0.0, || {
                format!("RoPE scaling (`{key}` {factor}) is not supported")
            });
        }
        for (key, what) in [
            ("attention.sliding_window", "a sliding window"),
            ("expert_count", "a mixture of experts"),
        ] {
            let count: u32 = self.unread(key).unwrap_or(0);
            self.check(count == 0, || {
                format!("{what} (`{key}` {count}) is not supported")
            });
        }
        let vocab = self.unread("vocab_size").unwrap_or(spec.vocab);
        self.check(vocab == spec.vocab, || {
            format!(
                "`vocab_size` is {vocab}, but the embedding has {} rows",
                spec.vocab
            )
        });
        let causal = self.unread("attention.causal").unwrap_or(true);
        self.check(causal, || {
            "attention that is not causal is not supported".into()
        });
        let scale: Option<f32> = self.unread("attention.scale");
        self.check(scale.is_none(), || {
            "an attention scale of its own (`attention.scale`) is not supported".into()
        });
    }
}
