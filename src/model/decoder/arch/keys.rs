//! The keys `ARCHITECTURE.*` of a file, and the plain decoder that they describe.

use std::collections::BTreeSet;

use super::refuse_all;
use crate::base::{Code, Result};
use crate::model::decoder::tensors::{ContextLength, FUSED_QKV, LayerTensor, Role};
use crate::model::decoder::{
    DecoderSpec, Embedding, Head, Layer, MAX_LAYERS, RopeRows, RopeScaling, Rotary,
};
use crate::model::gguf::{ByteOrder, FromValue, Gguf, Uniform, Value};

/// The default of llama.cpp for a file without the key.
const DEFAULT_ROPE_FREQ_BASE: f32 = 10000.0;

/// Most numbers in `rope_freqs.weight`: more than any head has pairs of columns.
const MAX_DIVISORS: u64 = 1 << 12;

/// The keys of one architecture. Errors are collected until [`Keys::finish`].
pub(super) struct Keys<'a> {
    gguf: &'a Gguf<'a>,
    prefix: &'static str,
    /// The keys that were read.
    read: BTreeSet<String>,
    errors: Vec<String>,
}

impl<'a> Keys<'a> {
    /// The keys of `gguf` that begin with `prefix`.
    pub(super) fn new(gguf: &'a Gguf<'a>, prefix: &'static str) -> Self {
        Keys {
            gguf,
            prefix,
            read: BTreeSet::new(),
            errors: vec![],
        }
    }

    /// The value of `key`. It is an error if the key is missing.
    pub(super) fn require<T: FromValue<'a>>(&mut self, key: &str) -> Option<T> {
        let full_key = self.mark_read(key);
        match self.gguf.metadata.require(&full_key) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.errors.push(problem.to_string());
                None
            }
        }
    }

    /// The value of `key`, if the file has it.
    pub(super) fn optional<T: FromValue<'a>>(&mut self, key: &str) -> Option<T> {
        let full_key = self.mark_read(key);
        match self.gguf.metadata.get(&full_key) {
            Ok(value) => value,
            Err(problem) => {
                self.errors.push(problem.to_string());
                None
            }
        }
    }

    /// Reads the keys of RoPE's scaling, and the tensors of divisors. Without a type, llama.cpp takes
    /// `linear`.
    fn read_scaling(&mut self, rotary: &mut Rotary, context_length: u32) {
        let kind: &str = self.optional("rope.scaling.type").unwrap_or("linear");
        let old_factor = self.factor("rope.scale_linear");
        let factor = self
            .factor("rope.scaling.factor")
            .or(old_factor)
            .unwrap_or(1.0);
        let original_context = self
            .optional("rope.scaling.original_context_length")
            .unwrap_or(context_length);
        let magnitude = self.factor("rope.scaling.attn_factor").unwrap_or(1.0);
        self.check(factor > 0.0, || {
            format!("the factor of RoPE's scaling is {factor}")
        });
        let divisors = self.divisors(ContextLength::Any, factor);
        let short = self.divisors(ContextLength::Short, factor);
        let long = self.divisors(ContextLength::Long, factor);
        rotary.scaling = match (kind, divisors, short.zip(long)) {
            ("none", None, None) => RopeScaling::None,
            ("linear", None, None) if factor == 1.0 => RopeScaling::None,
            ("linear", None, None) => RopeScaling::Linear(factor),
            ("none" | "linear", Some(divisors), None) => RopeScaling::Divided(divisors),
            ("none" | "linear" | "longrope", None, Some((short, long))) => RopeScaling::LongRope {
                short,
                long,
                original_context,
            },
            ("yarn", None, None) => RopeScaling::Yarn {
                factor,
                original_context,
            },
            _ => {
                let is_known = matches!(kind, "none" | "linear" | "longrope" | "yarn");
                let tensors = if is_known {
                    " with these tensors `rope_*`"
                } else {
                    ""
                };
                let kind = Value::Str(kind);
                self.errors
                    .push(format!("RoPE scaling {kind}{tensors} is not supported"));
                RopeScaling::None
            }
        };
        let magnitude = magnitude * rotary.scaling.magnitude();
        rotary.magnitude = (magnitude != 1.0).then_some(magnitude);
    }

    /// The divisors for the contexts `of`, if the file has a tensor of them, times `factor`; ones if
    /// only its header is known. `check.rs` checks how many there are.
    fn divisors(&mut self, of: ContextLength, factor: f32) -> Option<Vec<f32>> {
        let name = Role::RotaryDivisors(of).weight();
        let gguf = self.gguf;
        let tensor = gguf.tensors.iter().find(|tensor| tensor.name == name)?;
        let is_valid = tensor.ggml.name == "F32" && tensor.values() <= MAX_DIVISORS;
        self.check(is_valid, || {
            let (count, kind) = (tensor.values(), tensor.ggml.name);
            format!("`{name}` has {count} numbers of type {kind}")
        });
        let numbers = gguf.data(tensor).as_chunks().0;
        if !is_valid || numbers.is_empty() {
            return Some(vec![1.0; tensor.values().min(MAX_DIVISORS) as usize]);
        }
        let mut divisors = vec![];
        for bytes in numbers {
            let divisor = match gguf.order {
                ByteOrder::Little => f32::from_le_bytes(*bytes),
                ByteOrder::Big => f32::from_be_bytes(*bytes),
            };
            divisors.push(divisor * factor);
        }
        let are_positive = divisors
            .iter()
            .all(|divisor| divisor.is_finite() && *divisor > 0.0);
        self.check(are_positive, || {
            format!("`{name}` has numbers that are not above zero")
        });
        Some(divisors)
    }

    /// A factor of the computation: the value of `key`; `None` if it is 0 or missing.
    pub(super) fn factor(&mut self, key: &str) -> Option<f32> {
        let factor: f32 = self.optional(key)?;
        self.check(factor.is_finite(), || format!("`{key}` is {factor}"));
        (factor != 0.0).then_some(factor)
    }

    /// The same for a key that must be there and not be 0.
    pub(super) fn required_factor(&mut self, key: &str) -> Option<f32> {
        let factor: f32 = self.require(key)?;
        self.check(factor.is_finite() && factor != 0.0, || {
            format!("`{key}` is {factor}")
        });
        Some(factor)
    }

    /// A soft cap: the value of `key`, which must be above 0; `None` if it is missing.
    pub(super) fn cap(&mut self, key: &str) -> Option<f32> {
        let cap: f32 = self.optional(key)?;
        self.check(cap > 0.0, || format!("`{key}` is {cap}"));
        Some(cap)
    }

    /// Whether each of `count` layers has a sliding window: in each period all but the last one, or
    /// as an array says.
    pub(super) fn local_layers(&mut self, period: u32, count: u32) -> Vec<bool> {
        let key = "attention.sliding_window_pattern";
        let pattern = self.optional(key).unwrap_or(Value::U32(period));
        let mut are_local = vec![];
        if let Value::Array(flags) = pattern {
            for flag in flags.iter() {
                are_local.extend(bool::from_value(&flag));
            }
        } else if let Some(period) = u32::from_value(&pattern) {
            for layer in 0..count {
                are_local.push(layer.checked_rem(period).is_none_or(|at| at + 1 < period));
            }
        }
        self.check(are_local.len() == count as usize, || {
            format!("`{key}` is neither a number nor an array of {count} bools")
        });
        are_local
    }

    /// Reads `key` and has no use for it.
    pub(super) fn ignore(&mut self, key: &str) {
        self.mark_read(key);
    }

    /// It is an error if `key` is there and is not `expected`.
    pub(super) fn require_equal(&mut self, key: &str, expected: u32) {
        let found = self.optional(key).unwrap_or(expected);
        self.check(found == expected, || {
            format!("`{key}` is {found}, but heads are {expected} wide")
        });
    }

    /// Whether the file has biases on q, k and v. Many architectures allow them.
    pub(super) fn has_qkv_bias(&self) -> bool {
        self.has_tensor(&Role::Layer(0, LayerTensor::Query).bias())
            || self.has_tensor(&format!("blk.0.{FUSED_QKV}.bias"))
    }

    /// Whether the file has the tensor `name`.
    fn has_tensor(&self, name: &str) -> bool {
        self.rows(name) > 0
    }

    /// The plain decoder of the file: all layers have the same `qkv_bias`, and RoPE rotates all
    /// columns of a head. `layout` is the order of the rows. An architecture changes the parts
    /// that differ.
    pub(super) fn plain(&mut self, layout: RopeRows, qkv_bias: bool) -> DecoderSpec {
        let block_count = self.count("block_count");
        let hidden = self.count("embedding_length");
        let heads = self.count("attention.head_count");
        let kv_heads = match self.optional("attention.head_count_kv") {
            Some(Uniform(count)) => count,
            None => heads,
        };
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
        let is_valid = heads > 0 && hidden > 0;
        self.check(
            !is_valid || key_length.is_some() || hidden.is_multiple_of(heads),
            || format!("hidden {hidden} is no multiple of {heads} heads"),
        );
        let mut rotary = Rotary::plain(layout, head_dim, base);
        self.read_scaling(&mut rotary, context_length);
        let mut layer = Layer::plain(rotary, qkv_bias);
        layer.attention.fused_qkv = self.has_tensor(&format!("blk.0.{FUSED_QKV}.weight"));
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
            layers: vec![layer; block_count.min(MAX_LAYERS) as usize],
            head: Head {
                tied: !self.has_tensor(&Role::Head.weight()),
                scale: None,
                soft_cap: None,
            },
        }
    }

    /// A problem that lists all errors of the keys of `spec`. An unread key that would change the
    /// computation is an error too.
    pub(super) fn finish(mut self, spec: &DecoderSpec) -> Result<()> {
        self.check_heads(spec);
        self.check_numbers(spec);
        self.check_unread(spec);
        refuse_all(
            Code::ModelHyperparameters,
            "the metadata do not describe a model that kiln can build",
            self.errors,
        )
    }

    /// Records that `key` was read, and returns it with its prefix.
    fn mark_read(&mut self, key: &str) -> String {
        self.read.insert(key.into());
        format!("{}.{key}", self.prefix)
    }

    /// The value of `key`, if the file has it and it was not read before.
    fn unread<T: FromValue<'a>>(&mut self, key: &str) -> Option<T> {
        if self.read.contains(key) {
            return None;
        }
        self.optional(key)
    }

    /// A number above zero, the same for every layer; 0 after an error.
    fn count(&mut self, key: &str) -> u32 {
        let Some(Uniform(count)) = self.require(key) else {
            return 0;
        };
        self.check(count > 0, || format!("`{key}` is 0"));
        count
    }

    /// Outermost dimension of a tensor; 0 if it is missing.
    fn rows(&self, name: &str) -> u32 {
        for tensor in &self.gguf.tensors {
            if tensor.name == name {
                let rows = tensor.shape.first().copied().unwrap_or(0);
                return u32::try_from(rows).unwrap_or(0);
            }
        }
        0
    }

    /// Adds an error unless `is_valid`.
    fn check(&mut self, is_valid: bool, message: impl FnOnce() -> String) {
        if !is_valid {
            self.errors.push(message());
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
            format!("head width {head_dim}; RoPE needs an even one")
        });
        self.check(kv_heads > 0 && heads % kv_heads == 0, || {
            format!("{heads} query heads cannot share {kv_heads} heads of keys and values")
        });
        for key in ["attention.value_length", "rope.dimension_count"] {
            if !self.read.contains(key) {
                self.require_equal(key, head_dim);
            }
        }
    }

    fn check_numbers(&mut self, spec: &DecoderSpec) {
        let epsilon = spec.rms_epsilon;
        self.check(epsilon >= 0.0, || {
            format!("the epsilon of RMSNorm is {epsilon}")
        });
        for layer in &spec.layers {
            let Some(Rotary { base, dims, .. }) = layer.attention.rotary else {
                continue;
            };
            let (is_base, width) = (base > 0.0, spec.head_dim);
            let is_width = dims > 0 && dims.is_multiple_of(2) && dims <= width;
            self.check(is_base, || format!("the base of RoPE is {base}"));
            self.check(is_width || width == 0, || {
                format!("RoPE rotates {dims} columns of a head of {width}")
            });
            if !is_base || !is_width {
                break;
            }
        }
    }

    /// Keys that would change the computation.
    fn check_unread(&mut self, spec: &DecoderSpec) {
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
