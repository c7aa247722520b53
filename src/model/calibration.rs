//! The results of a calibration: statistics of the values of a graph (`activations.json`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The statistics of every float value of a graph, by name. Those of the values of heads are
/// together, by the name [`of_all_heads`](super::facts::of_all_heads).
pub type Activations = BTreeMap<String, Activation>;

/// Statistics of one value over all windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Activation {
    /// Number of elements.
    pub count: u64,
    /// Number of zeros, for example in an empty cache.
    pub zeros: u64,
    /// Smallest element.
    pub min: f32,
    /// Largest element.
    pub max: f32,
    /// Mean of the squares.
    pub mean_square: f64,
    /// Mean of the squares of the elements that are not zero and not above `p99`, so without
    /// outliers.
    pub bulk_square: f64,
    /// 99th percentile of the magnitudes, to a sixteenth of an octave.
    pub p99: f32,
    /// 99.9th percentile, to the same accuracy.
    pub p99_9: f32,
    /// 99.99th percentile, to the same accuracy.
    pub p99_99: f32,
}

/// Name of the part with the means of the keys.
pub const KEY_MEANS: &str = "key_means.json";

/// The mean of the rotated keys of each layer, before centring: `[kv_heads * head_dim]`.
pub type KeyMeans = BTreeMap<u32, Vec<f64>>;

/// In a graph that centres keys, the constant `KEY.shift` is added to a layer's rotated keys. It is
/// the vector u that was subtracted from their bias, minus their centre. `[kv_heads * head_dim]`.
pub const KEY_SHIFT: &str = "shift";
/// The constant `KEY.turn` holds u for the rotation: row r has `-u_r` in column
/// `r % (head_dim / 2)`, which is multiplied by 1 - cos of the angle of r. `[kv_heads * head_dim,
/// head_dim]`.
pub const KEY_TURN: &str = "turn";

/// Facts of `diagonal/TENSOR` and `moments/TENSOR`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MomentFacts {
    /// Columns of the weight, which is the width of its input.
    pub columns: u64,
    /// Number of inputs in the mean.
    pub tokens: u64,
}

/// The name of the sums of the blocks of `value`, an input of a linear layer, divided by
/// [`SumColumns::DIVISOR`](super::weight::SumColumns::DIVISOR).
pub fn sums_name(value: &str) -> String {
    format!("{value}{SUMS}")
}

/// Whether `name` is that of sums of blocks.
pub fn is_sums(name: &str) -> bool {
    name.ends_with(SUMS)
}

/// The name of `value` followed by its sums.
pub fn wide_name(value: &str) -> String {
    format!("{value}{WIDE}")
}

/// The value that `name` has the elements and the sums of.
pub fn wide_of(name: &str) -> Option<&str> {
    name.strip_suffix(WIDE)
}

const SUMS: &str = ".sums";
const WIDE: &str = ".wide";
