//! The description of a decoder, as data.
//!
//! The plain layer adds two branches to the residual stream x, where `norm` is RMSNorm:
//!
//! ```text
//! x += output(attention(q, k, v of norm(x)))    q and k rotated by RoPE
//! x += down(act(gate) * up of norm(x))
//! logits = head(norm(x))
//! ```
//!
//! A [`Layer`] describes where a layer differs. Graph and reference implement it independently, so
//! that each checks the other.
//!
//! To add a part, add a field or a variant.
//! Every consumer destructures the structs field by field and matches every variant, so the
//! compiler lists the places that must handle it. They may return [`not_supported`].

use std::fmt;

use serde::{Deserialize, Serialize};

use super::rotary::{RopeScaling, Rotary};
use crate::base::{Code, Problem, Result};

/// Most layers, as in llama.cpp (`LLAMA_MAX_LAYERS`).
pub const MAX_LAYERS: u32 = 512;

/// A decoder-only transformer. `structure.rs` serializes it.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// The architecture as its file calls it. It is only displayed.
    pub architecture: String,
    /// Longest context the model was trained for, in tokens.
    pub context_length: u32,
    /// Rows of the embedding.
    pub vocab: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of the feed-forward layer.
    pub ffn: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// The epsilon of every RMSNorm.
    pub rms_epsilon: f32,
    /// The embedding.
    pub embedding: Embedding,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// The head, after the last layer and its RMSNorm.
    pub head: Head,
}

/// The embedding of the tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// The rows are multiplied by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
}

/// The head, which computes the logits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Whether its matrix is the embedding.
    pub tied: bool,
    /// The logits are multiplied by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
    /// A logit x becomes `c tanh(x / c)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_cap: Option<f32>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The position of RMSNorm.
    #[serde(default, skip_serializing_if = "is_default")]
    pub norms: Norms,
    /// The first branch.
    pub attention: Attention,
    /// The activation of the gate in the second branch.
    #[serde(default, skip_serializing_if = "is_default")]
    pub activation: Activation,
    /// Whether the file has gate and up as one matrix, `ffn_up`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fused_gate_up: bool,
    /// Both branches are multiplied by it before they are added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_scale: Option<f32>,
}

/// The attention of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Whether q, k and v have biases.
    #[serde(default, skip_serializing_if = "is_default")]
    pub qkv_bias: bool,
    /// Whether the file has q, k and v as one matrix, `attn_qkv`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fused_qkv: bool,
    /// The normalization of queries and keys before they are rotated.
    #[serde(default, skip_serializing_if = "is_default")]
    pub qk_norm: QkNorm,
    /// The rotary embedding of queries and keys, if there is one.
    pub rotary: Option<Rotary>,
    /// The tokens that a token attends to.
    #[serde(default, skip_serializing_if = "is_default")]
    pub window: Window,
    /// Scores are multiplied by it; by default by `1 / sqrt(head_dim)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_scale: Option<f32>,
    /// A score x becomes `c tanh(x / c)` before the mask is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_cap: Option<f32>,
}

/// The position of RMSNorm in both branches of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norms {
    /// The input of a branch is normalized.
    #[default]
    Before,
    /// The output of a branch is normalized.
    After,
    /// Both.
    Around,
}

/// The RMSNorm of queries and keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNorm {
    /// There is none.
    #[default]
    None,
    /// Over the values of each head, with one weight for all heads.
    PerHead,
    /// Over all heads together.
    WholeRow,
}

/// The tokens that a token attends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Window {
    /// Itself and all before it.
    #[default]
    Full,
    /// This number of tokens up to and including itself.
    Sliding(u32),
}

/// The activation of the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[default]
    Silu,
    /// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

impl DecoderSpec {
    /// How many layers there are; at most [`MAX_LAYERS`].
    pub fn block_count(&self) -> u32 {
        self.layers.len() as u32
    }

    /// Layer `index`.
    pub fn layer(&self, index: u32) -> Result<&Layer> {
        match self.layers.get(index as usize) {
            Some(layer) => Ok(layer),
            None => Err(Problem::new(
                Code::ModelLayer,
                format!("there is no layer {index} among {}", self.block_count()),
            )),
        }
    }

    /// Where it differs from a plain decoder, in words.
    pub fn differences(&self) -> Vec<String> {
        let mut found: Vec<(String, usize)> = vec![];
        let is_base_unique = self.has_one_base();
        for part in self
            .layers
            .iter()
            .flat_map(|layer| layer.differences(self.head_dim, is_base_unique))
        {
            match found.iter_mut().find(|(known, _)| *known == part) {
                Some((_, count)) => *count += 1,
                None => found.push((part, 1)),
            }
        }
        let mut texts = vec![];
        if let Some(scale) = self.embedding.scale {
            texts.push(format!("the embedding times {scale}"));
        }
        for (part, count) in found {
            let all = self.layers.len();
            if count == all {
                texts.push(part);
            } else {
                texts.push(format!("{part} in {count} of {all} layers"));
            }
        }
        if let Some(scale) = self.head.scale {
            texts.push(format!("logits times {scale}"));
        }
        if let Some(cap) = self.head.soft_cap {
            texts.push(format!("logits capped at {cap}"));
        }
        texts
    }

    /// Whether the result depends on the context that the model is opened with.
    pub fn depends_on_context(&self) -> bool {
        let mut rotaries = self.layers.iter().flat_map(|layer| &layer.attention.rotary);
        rotaries.any(|rotary| matches!(rotary.scaling, RopeScaling::LongRope { .. }))
    }

    /// Whether all rotary embeddings have the same base.
    fn has_one_base(&self) -> bool {
        let rotaries = self.layers.iter().flat_map(|layer| &layer.attention.rotary);
        let mut bases = rotaries.map(|rotary| rotary.base);
        match bases.next() {
            Some(first) => bases.all(|base| base == first),
            None => true,
        }
    }

    /// Whether any layer has biases on q, k and v.
    pub fn has_qkv_bias(&self) -> bool {
        self.layers.iter().any(|layer| layer.attention.qkv_bias)
    }
}

impl Norms {
    /// Whether the input of a branch is normalized.
    pub fn before(self) -> bool {
        matches!(self, Norms::Before | Norms::Around)
    }

    /// Whether the output of a branch is normalized.
    pub fn after(self) -> bool {
        matches!(self, Norms::After | Norms::Around)
    }
}

impl Layer {
    /// Where it differs from a plain layer, in words. Biases and fused matrices are not among them.
    /// The base of RoPE is, if it is not the same in all layers.
    fn differences(&self, head_dim: u32, is_base_unique: bool) -> Vec<String> {
        let Layer {
            norms,
            attention,
            activation,
            fused_gate_up: _,
            residual_scale,
        } = self;
        let Attention {
            qkv_bias: _,
            fused_qkv: _,
            qk_norm,
            rotary,
            window,
            score_scale,
            score_cap,
        } = attention;
        let mut texts = vec![];
        if *norms != Norms::default() {
            texts.push(norms.to_string());
        }
        if *qk_norm != QkNorm::default() {
            texts.push(qk_norm.to_string());
        }
        match rotary {
            None => texts.push("no RoPE".into()),
            Some(rotary) => {
                if !is_base_unique {
                    texts.push(format!("RoPE with the base {}", rotary.base));
                }
                if rotary.dims != head_dim {
                    let dims = rotary.dims;
                    texts.push(format!(
                        "RoPE of {dims} of the {head_dim} columns of a head"
                    ));
                }
                texts.extend(rotary.scaling_in_words());
            }
        }
        if *window != Window::default() {
            texts.push(window.to_string());
        }
        if *activation != Activation::default() {
            texts.push(activation.to_string());
        }
        for (what, number) in [
            ("scores times", score_scale),
            ("scores capped at", score_cap),
            ("branches times", residual_scale),
        ] {
            if let Some(number) = number {
                texts.push(format!("{what} {number}"));
            }
        }
        texts
    }

    /// The plain layer.
    pub fn plain(rotary: Rotary, qkv_bias: bool) -> Self {
        Layer {
            norms: Norms::default(),
            attention: Attention {
                qkv_bias,
                fused_qkv: false,
                qk_norm: QkNorm::default(),
                rotary: Some(rotary),
                window: Window::default(),
                score_scale: None,
                score_cap: None,
            },
            activation: Activation::default(),
            fused_gate_up: false,
            residual_scale: None,
        }
    }
}

/// The problem of `consumer` with a part of a decoder that it does not implement.
pub fn not_supported(consumer: &str, part: impl fmt::Display) -> Problem {
    Problem::new(
        Code::ModelNotSupported,
        format!("{consumer} does not support {part}"),
    )
}

impl fmt::Display for Norms {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Norms::Before => "RMSNorm before each branch",
            Norms::After => "RMSNorm after each branch instead of before",
            Norms::Around => "RMSNorm before and after each branch",
        })
    }
}

impl fmt::Display for QkNorm {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            QkNorm::None => "queries and keys as they are",
            QkNorm::PerHead => "RMSNorm of each head of queries and keys",
            QkNorm::WholeRow => "RMSNorm of queries and keys over all heads",
        })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Window::Full => f.write_str("attention to all tokens before"),
            Window::Sliding(tokens) => write!(f, "a sliding window of {tokens} tokens"),
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Activation::Silu => "the activation SiLU",
            Activation::GeluTanh => "the activation GELU (tanh)",
        })
    }
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
impl DecoderSpec {
    /// A tiny plain decoder of two layers, for unit tests.
    pub(crate) fn tiny() -> Self {
        let rotary = Rotary::plain(super::RopeRows::HalfSplit, 4, 10000.0);
        DecoderSpec {
            architecture: "tiny".into(),
            context_length: 64,
            vocab: 10,
            hidden: 8,
            ffn: 12,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            rms_epsilon: 0.0625,
            embedding: Embedding::default(),
            layers: vec![Layer::plain(rotary, false); 2],
            head: Head {
                tied: true,
                scale: None,
                soft_cap: None,
            },
        }
    }

    /// The tiny decoder once with each part that a plain decoder lacks, by the name of the part in
    /// `not_supported`.
    pub(crate) fn variants() -> Vec<(&'static str, DecoderSpec)> {
        let mut all = vec![];
        let mut add = |part: &'static str, change: fn(&mut DecoderSpec)| {
            let mut spec = DecoderSpec::tiny();
            change(&mut spec);
            all.push((part, spec));
        };
        add("RMSNorm after each branch instead of before", |spec| {
            spec.layers[1].norms = Norms::After
        });
        add("RMSNorm before and after each branch", |spec| {
            spec.layers[1].norms = Norms::Around
        });
        add("RMSNorm of each head of queries and keys", |spec| {
            spec.layers[1].attention.qk_norm = QkNorm::PerHead
        });
        add("RMSNorm of queries and keys over all heads", |spec| {
            spec.layers[1].attention.qk_norm = QkNorm::WholeRow
        });
        add("layers without RoPE", |spec| {
            spec.layers[1].attention.rotary = None
        });
        add("RoPE of 2 of 4 columns", |spec| {
            for layer in &mut spec.layers {
                layer.attention.rotary.as_mut().unwrap().dims = 2;
            }
        });
        add("scaled RoPE", |spec| {
            for layer in &mut spec.layers {
                let rotary = layer.attention.rotary.as_mut().unwrap();
                rotary.scaling = super::RopeScaling::Divided(vec![1.0, 8.0]);
                rotary.magnitude = Some(1.25);
            }
        });
        add("RoPE that depends on the context", |spec| {
            for layer in &mut spec.layers {
                let rotary = layer.attention.rotary.as_mut().unwrap();
                rotary.scaling = super::RopeScaling::LongRope {
                    short: vec![1.0, 1.5],
                    long: vec![1.0, 4.0],
                    original_context: 12,
                };
            }
        });
        add("fused matrices", |spec| {
            for layer in &mut spec.layers {
                layer.attention.fused_qkv = true;
                layer.fused_gate_up = true;
            }
        });
        add("a sliding window of 5 tokens", |spec| {
            spec.layers[1].attention.window = Window::Sliding(5)
        });
        add("the activation GELU (tanh)", |spec| {
            spec.layers[1].activation = Activation::GeluTanh
        });
        add("a score scale of 0.25", |spec| {
            spec.layers[1].attention.score_scale = Some(0.25)
        });
        add("a soft cap of the scores of 50", |spec| {
            spec.layers[1].attention.score_cap = Some(50.0)
        });
        add("a residual scale of 0.5", |spec| {
            spec.layers[1].residual_scale = Some(0.5)
        });
        add("an embedding scale of 12", |spec| {
            spec.embedding.scale = Some(12.0)
        });
        add("a logit scale of 0.125", |spec| {
            spec.head.scale = Some(0.125)
        });
        add("a soft cap of the logits of 30", |spec| {
            spec.head.soft_cap = Some(30.0)
        });
        all
    }
}
