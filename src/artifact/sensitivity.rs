//! The output of `sensitivity`: the cost of each scheme for each tensor.

use serde::{Deserialize, Serialize};

/// The cost of a scheme for one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Name of the scheme.
    pub scheme: String,
    /// Bytes of codes, scales and offsets, or values.
    pub bytes: u64,
    /// Mean KL divergence from the reference of the model with only this tensor in the scheme, in
    /// nats; 0 for the graph's own scheme.
    pub kld: f64,
}

/// The costs of all schemes for one tensor: the facts of `TENSOR/costs.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorCosts {
    /// Its name.
    pub tensor: String,
    /// The graph's own scheme first.
    pub costs: Vec<Cost>,
}
