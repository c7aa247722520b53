//! Weight encodings: the encodings, the parts of each, and the facts of a part. `requant` and
//! `dequant` write the encoding to the facts; all other stages read it there.

mod element;
mod encoding;
mod shifted;
mod stored;

pub use element::Element;
pub use encoding::{PartSpec, WeightEncoding, WeightForm, WeightPart};
pub use shifted::SumColumns;
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
    /// Error of the weight compared with its source tensor; only for the main part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorFacts>,
}

impl WeightFacts {
    /// Whether this is the main part: the one with an element for each value of the weight.
    pub fn is_main(&self) -> bool {
        self.part == self.encoding.main_part()
    }

    /// Values of the weight.
    pub fn values(&self) -> u64 {
        let mut values = 1u64;
        for &n in &self.shape {
            values = values.saturating_mul(n);
        }
        values
    }
}

/// Error of a requantized tensor compared with its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorFacts {
    /// ggml's name of the source type.
    pub source: String,
    /// The scheme: `native`.
    pub scheme: String,
    /// Whether every value has the same bits as that of the source in f32. Exception:
    /// `native-safe` may change the sign of a zero.
    pub exact: bool,
    /// Signal to quantization noise, in dB, to a hundredth; absent if there is no noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
    /// The same in the output of the layer: by the second moments of its inputs, or by their mean
    /// squares, whichever the calibration has. Absent without a calibration, and for schemes that
    /// do not use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_sqnr_db: Option<f64>,
    /// Largest absolute error.
    pub max_error: f64,
    /// Share of the values beyond the last code, to a millionth; absent if no value can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped: Option<f64>,
}

/// A use of a weight matrix in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum WeightUse {
    /// Multiplies activations with it.
    Linear {
        /// How it is stored.
        weight: WeightEncoding,
        /// The type of the activations.
        activations: Activations,
    },
    /// Looks up rows of it, in floating point.
    Lookup {
        /// How it is stored.
        weight: WeightEncoding,
    },
    /// Looks up rows of it in 16-bit codes, with one scale for all values.
    LookupU16 {
        /// How it is stored.
        weight: WeightEncoding,
    },
}

/// The types of the activations of a linear layer, and of its arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// It reads and computes in floating point, f16 on the device.
    F16,
    /// It reads 16-bit codes and computes in f16.
    F16FromU16,
    /// It multiplies 16-bit codes, with one scale for all inputs and one for all outputs.
    U16,
}

/// The name of the weight of a part: `NAME` for `NAME/codes`.
pub fn blob_owner(part: &str) -> &str {
    match part.rsplit_once('/') {
        Some((weight, _)) => weight,
        None => part,
    }
}
