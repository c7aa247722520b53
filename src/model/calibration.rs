//! What a calibration tells of the values of a graph: the words of `activations.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Every float value of a graph, by name.
pub type Activations = BTreeMap<String, Activation>;

/// What one value held over all windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Activation {
    /// Elements that were seen.
    pub count: u64,
    /// Those that were zero: an empty cache, for one.
    pub zeros: u64,
    /// The least element.
    pub min: f32,
    /// The greatest element.
    pub max: f32,
    /// Mean of the squares.
    pub mean_square: f64,
    /// Mean of the squares of what is neither zero nor above `p99`: a few outliers do not hide in
    /// it.
    pub bulk_square: f64,
    /// 99 % of the magnitudes are at most this, to a sixteenth of an octave.
    pub p99: f32,
    /// 99.9 %, likewise.
    pub p99_9: f32,
    /// 99.99 %, likewise.
    pub p99_99: f32,
}

/// The part that has the means of the keys.
pub const KEY_MEANS: &str = "key_means.json";

/// Of each layer the mean of its rotated keys, before any is centred: `[kv_heads * head_dim]`.
pub type KeyMeans = BTreeMap<u32, Vec<f64>>;

/// In a graph that centres keys, the constant `KEY.shift` is added to a layer's rotated keys: what
/// was taken out of their bias, less their centre. `[kv_heads * head_dim]`.
pub const KEY_SHIFT: &str = "shift";
/// The constant `KEY.turn` tells what was taken out of the bias, u: in row r, in the column of 1 -
/// cos of the angle by which r turns, `r % (head_dim / 2)`, it has `-u_r`. `[kv_heads * head_dim,
/// head_dim]`.
pub const KEY_TURN: &str = "turn";

/// Facts of `diagonal/TENSOR` and `moments/TENSOR`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MomentFacts {
    /// Columns of the weight: the width of its input.
    pub columns: u64,
    /// Inputs over which the mean was taken.
    pub tokens: u64,
}
