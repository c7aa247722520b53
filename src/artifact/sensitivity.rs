//! What `sensitivity` hands over.

use serde::{Deserialize, Serialize};

/// What a scheme costs a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Name of the scheme.
    pub scheme: String,
    /// Bytes of codes, scales and offsets, or values.
    pub bytes: u64,
    /// Mean KL divergence of the model with this one tensor so held from the reference, in nats;
    /// none for the graph's own.
    pub kld: f64,
}

/// What each scheme costs one tensor: the facts of `TENSOR/costs.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorCosts {
    /// Its name.
    pub tensor: String,
    /// The graph's own scheme first.
    pub costs: Vec<Cost>,
}
