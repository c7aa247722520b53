//! Rotary embedding (RoPE), and the scaling of its frequencies.

use serde::{Deserialize, Serialize};

/// Turns in the original context above which YaRN keeps a frequency.
const YARN_FAST: f64 = 32.0;
/// Turns below which it divides it.
const YARN_SLOW: f64 = 1.0;

/// Rotary embedding: the pair of columns i of a head is rotated by the angle
/// `position * base^(-2 i / dims) / divisor_i`, where [`Rotary::divisors`] is 1 unless the
/// frequencies are scaled. Columns from `dims` on stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// The order of the rows of `attn_q` and `attn_k` in the file.
    pub layout: RopeRows,
    /// The number of columns of a head that are rotated, from the first.
    pub dims: u32,
    /// The base of the frequencies.
    pub base: f32,
    /// How the frequencies are scaled.
    #[serde(default, skip_serializing_if = "RopeScaling::is_none")]
    pub scaling: RopeScaling,
    /// Cosines and sines are multiplied by it: the file's factor and that of the scaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub magnitude: Option<f32>,
}

/// The scaling of the frequencies of RoPE, for contexts longer than those of the training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RopeScaling {
    /// None.
    #[default]
    None,
    /// All are divided by this factor.
    Linear(f32),
    /// Frequency i is divided by number i; Llama 3.1 and later, tensor `rope_freqs.weight`.
    Divided(Vec<f32>),
    /// LongRoPE: frequency i is divided by number i of one of two lists, by the length of the
    /// context; tensors `rope_factors_short.weight` and `rope_factors_long.weight`.
    LongRope {
        /// The numbers for contexts of at most `original_context` tokens.
        short: Vec<f32>,
        /// The numbers for longer contexts.
        long: Vec<f32>,
        /// The context that the model was trained for before, in tokens.
        original_context: u32,
    },
    /// YaRN.
    Yarn {
        /// The factor of the lowest frequencies.
        factor: f32,
        /// The context that the model was trained for before, in tokens.
        original_context: u32,
    },
}

/// Which rows of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RopeRows {
    /// Rows 2i and 2i+1 (GGUF files of `llama`).
    Interleaved,
    /// Rows i and i + dims/2 (NeoX: `qwen2`, Hugging Face).
    HalfSplit,
}

impl RopeScaling {
    /// The factor of cosines and sines that belongs to the scaling: in YaRN, section 3.4.
    pub fn magnitude(&self) -> f32 {
        match self {
            RopeScaling::Yarn { factor, .. } => 1.0 + 0.1 * factor.ln(),
            RopeScaling::None
            | RopeScaling::Linear(_)
            | RopeScaling::Divided(_)
            | RopeScaling::LongRope { .. } => 1.0,
        }
    }

    fn is_none(&self) -> bool {
        *self == RopeScaling::None
    }
}

impl Rotary {
    /// RoPE without scaling.
    pub fn plain(layout: RopeRows, dims: u32, base: f32) -> Self {
        Rotary {
            layout,
            dims,
            base,
            scaling: RopeScaling::None,
            magnitude: None,
        }
    }

    /// How frequencies, cosines and sines are scaled, if they are.
    pub(super) fn scaling_in_words(&self) -> Option<String> {
        let mut text = match &self.scaling {
            RopeScaling::None if self.magnitude.is_none() => return None,
            RopeScaling::None => "RoPE".into(),
            RopeScaling::Linear(factor) => format!("RoPE with frequencies divided by {factor}"),
            RopeScaling::Divided(divisors) => {
                let last = divisors.last().copied().unwrap_or(1.0);
                format!("RoPE with frequencies divided by `rope_freqs.weight`, up to {last}")
            }
            RopeScaling::LongRope {
                original_context, ..
            } => format!(
                "RoPE with frequencies divided by `rope_factors_short.weight`, in contexts above \
                 {original_context} by `rope_factors_long.weight`"
            ),
            RopeScaling::Yarn {
                factor,
                original_context,
            } => format!("RoPE with YaRN: factor {factor} for contexts of {original_context}"),
        };
        if let Some(magnitude) = self.magnitude {
            text.push_str(&format!(", cosines and sines times {magnitude}"));
        }
        Some(text)
    }

    /// What the frequency of each pair of columns is divided by, `[dims / 2]`, in a model opened
    /// with a `context` of so many tokens.
    pub fn divisors(&self, context: u32) -> Vec<f64> {
        let pairs = self.dims as usize / 2;
        match &self.scaling {
            RopeScaling::None => vec![1.0; pairs],
            RopeScaling::Linear(factor) => vec![f64::from(*factor); pairs],
            RopeScaling::Divided(divisors) => divisors.iter().copied().map(f64::from).collect(),
            RopeScaling::LongRope {
                short,
                long,
                original_context,
            } => {
                let divisors = if context > *original_context {
                    long
                } else {
                    short
                };
                divisors.iter().copied().map(f64::from).collect()
            }
            RopeScaling::Yarn {
                factor,
                original_context,
            } => self.yarn_divisors(f64::from(*factor), f64::from(*original_context)),
        }
    }

    /// The divisors of YaRN: 1 for the pairs that turn at least [`YARN_FAST`] times in the original
    /// context, `factor` for those that turn less than [`YARN_SLOW`] times, a mix between.
    ///
    /// Peng et al., *YaRN: Efficient Context Window Extension* (2023), section 3.2, with the limits
    /// rounded as in llama.cpp (`ggml_rope_yarn_corr_dims`).
    fn yarn_divisors(&self, factor: f64, original_context: f64) -> Vec<f64> {
        let (dims, base) = (f64::from(self.dims), f64::from(self.base));
        let pair_of = |turns: f64| {
            let turn = original_context / (turns * std::f64::consts::TAU);
            dims * turn.ln() / (2.0 * base.ln())
        };
        let first = pair_of(YARN_FAST).floor().max(0.0);
        let last = pair_of(YARN_SLOW).ceil().min(dims - 1.0);
        let mut divisors = vec![];
        for i in 0..self.dims / 2 {
            let ramp = (f64::from(i) - first) / (last - first).max(0.001);
            let kept = 1.0 - ramp.clamp(0.0, 1.0);
            divisors.push((kept + (1.0 - kept) / factor).recip());
        }
        divisors
    }
}
