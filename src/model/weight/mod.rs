//! How weights are encoded: the encodings, the parts that each of them has, and what parts say of
//! themselves. `requant` and `dequant` state the encoding; everybody else reads it.

mod element;
mod encoding;
mod stored;

pub use element::Element;
pub use encoding::{PartSpec, WeightEncoding, WeightForm, WeightPart};
pub use stored::{Stored, StoredWeight, stored};

use serde::{Deserialize, Serialize};

/// The facts of one part of a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightFacts {
    /// How the weight is stored.
    pub encoding: WeightEncoding,
    /// Which of its parts this is.
    pub part: WeightPart,
    /// Shape of the weight, outermost dimension first: `[rows, columns]` or `[n]`. The shape of the
    /// part follows from it and the encoding.
    pub shape: Vec<u64>,
    /// How far the weight is from the tensor it was made of; only of the main part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorFacts>,
}

impl WeightFacts {
    /// Whether this part has an element for each value of the weight: it stands for the whole.
    pub fn is_main(&self) -> bool {
        self.part == self.encoding.main_part()
    }

    /// Values of the weight.
    pub fn values(&self) -> u64 {
        self.shape
            .iter()
            .fold(1, |product, &n| product.saturating_mul(n))
    }
}

/// How far a requantized tensor is from its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorFacts {
    /// ggml's name of the source type.
    pub source: String,
    /// The scheme that made it: `native`.
    pub scheme: String,
    /// Whether every value is the source's in f32: bit for bit, but that `native-safe` may change
    /// the sign of a zero.
    pub exact: bool,
    /// Signal to quantization noise, in dB, to a hundredth; absent where there is no noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
    /// Largest absolute error.
    pub max_error: f64,
    /// Share of the values that lie beyond the last code, to a millionth; absent where none can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped: Option<f64>,
}

/// What a graph does with a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum WeightUse {
    /// Multiplies activations with it.
    Linear {
        /// How it is stored.
        weight: WeightEncoding,
        /// How the activations are held that it multiplies.
        activations: Activations,
    },
    /// Looks up rows of it.
    Lookup {
        /// How it is stored.
        weight: WeightEncoding,
    },
}

/// How a graph holds the activations that a linear layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activations {
    /// As numbers, f16 on the device.
    F16,
    /// As 16-bit codes under one scale.
    U16,
}

/// The weight of which `NAME/codes` is a part.
pub fn blob_owner(part: &str) -> &str {
    part.rsplit_once('/').map_or(part, |(weight, _)| weight)
}
