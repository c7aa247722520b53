//! The output of `mixed-precision`: a scheme for each tensor.

use serde::{Deserialize, Serialize};

/// The part that `requant` reads.
pub const OVERRIDES: &str = "overrides.toml";

/// The chosen schemes: the facts of `overrides.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssignmentFacts {
    /// In the order in which `requant` applies them: the last that matches wins.
    pub overrides: Vec<ChosenScheme>,
    /// Bytes of the measured tensors together.
    pub bytes: u64,
    /// Expected KL divergence of the model: the sum of the measured costs, in nats.
    pub kld: f64,
}

/// An override of a `requant` stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChosenScheme {
    /// Pattern of tensor names.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Name of the scheme.
    pub scheme: String,
}
