//! The output of `mixed-precision`: a scheme for each tensor.

use serde::{Deserialize, Serialize};

/// The part that `requant` reads.
pub const OVERRIDES: &str = "overrides.toml";

/// The part with the Pareto front: a list of points, for plots.
pub const FRONT: &str = "front.json";

/// The same for people.
pub const FRONT_TEXT: &str = "front.txt";

/// The chosen schemes: the facts of `overrides.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssignmentFacts {
    /// In the order in which `requant` applies them: the last that matches wins.
    pub overrides: Vec<ChosenScheme>,
    /// Bytes of the measured tensors together.
    pub bytes: u64,
    /// Expected KL divergence of the model: the sum of the measured costs, in nats.
    pub kld: f64,
    /// Expected time of a decode call in microseconds, if there were estimates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_us: Option<f64>,
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
