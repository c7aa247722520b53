//! Floor 4: text in, plan or all its problems out. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The name of a stage in its plan: `weights`; `tools.qnn` for the implicit stage of a tool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct StageId(pub String);

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checked plan: every stage kind, parameter, slot and tool exists and fits, and there is no cycle.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// `[plan] name`.
    pub name: String,
    /// The stages, in a topological order that follows the plan's own where it can.
    pub stages: Vec<PlannedStage>,
}

/// One stage of a checked plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedStage {
    /// Its name.
    pub id: StageId,
    /// Its kind, which the registry knows.
    pub kind: String,
    /// Its table without `kind`, `keep` and input slots; variables are filled in.
    pub params: Value,
    /// Input slot -> the stages that feed it.
    pub slots: BTreeMap<String, Vec<StageId>>,
    /// Tool name -> the implicit stage that fetches it.
    pub tools: BTreeMap<String, StageId>,
    /// Whether its artifacts are written out: `keep = true`, or nothing consumes it (never true of tools).
    pub keep: bool,
}

impl PlannedStage {
    /// The stages it waits for.
    pub fn dependencies(&self) -> impl Iterator<Item = &StageId> {
        self.slots.values().flatten().chain(self.tools.values())
    }
}
