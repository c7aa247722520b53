//! The output of `sensitivity`: the cost of each scheme for each tensor, or the costs of groups of
//! tensors, from which `mixed-precision` computes them.

use serde::{Deserialize, Serialize};

/// The part with the cost of a tensor or group, in its folder. Its facts are a [`Measurement`].
pub const COSTS: &str = "costs.json";

/// What one order measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Measurement {
    /// The costs of one tensor.
    Tensor(TensorCosts),
    /// The cost of several tensors together.
    Group(GroupCost),
}

/// The cost of a scheme for one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Name of the scheme.
    pub scheme: String,
    /// Bytes of codes, scales and offsets, or values.
    pub bytes: u64,
    /// Mean KL divergence from the reference of the model with only this tensor in the scheme, in
    /// nats. 0 for the graph's own scheme; from groups, 0 only if that is exact.
    pub kld: f64,
}

/// The costs of all schemes for one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorCosts {
    /// Its name.
    pub tensor: String,
    /// The graph's own scheme first.
    pub costs: Vec<Cost>,
}

/// The cost of the first candidate's schemes for all tensors of a group together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupCost {
    /// What the tensors have in common: a layer, `blk.3`, or a kind, `ffn_down.weight`.
    pub group: String,
    /// Mean KL divergence from the reference, in nats.
    pub kld: f64,
    /// The tensors of the group.
    pub tensors: Vec<TensorSchemes>,
}

/// The schemes of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorSchemes {
    /// Its name.
    pub tensor: String,
    /// The scheme in the graph.
    pub own: StoredScheme,
    /// The schemes in the candidates that store it differently, in their order.
    pub candidates: Vec<StoredScheme>,
}

/// A scheme that a tensor is stored in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredScheme {
    /// Its name.
    pub scheme: String,
    /// Bytes of codes, scales and offsets, or values.
    pub bytes: u64,
    /// Signal to rounding noise in dB, in the output of the layer where that is known. `None` if
    /// nothing is rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
}
