//! What a child process sends to its parent.

use serde::{Deserialize, Serialize};

use crate::action::Outputs;
use crate::base::Problem;

/// The contents of a child's result file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reply {
    Done {
        outputs: Outputs,
        peak_memory_bytes: Option<u64>,
    },
    Failed(Problem),
}

/// A line of a child's standard output.
#[derive(Serialize, Deserialize)]
pub(super) struct ProgressLine {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) unit: String,
}
