//! What `mixed-precision` hands over.

use serde::{Deserialize, Serialize};

/// The part that `requant` reads.
pub const OVERRIDES: &str = "overrides.toml";

/// The choice: the facts of `overrides.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssignmentFacts {
    /// In the order in which `requant` applies them: the last that matches wins.
    pub overrides: Vec<ChosenScheme>,
    /// What the tensors take.
    pub bytes: u64,
    /// What the model is expected to lose: the sum of the measured costs, in nats.
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
