//! Times and outputs of stages in earlier builds. They give the critical paths: starting the job
//! with the longest critical path first ends a build soonest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::Digest;
use crate::plan::Plan;

/// Times of a stage's parts when they ran last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTimes {
    /// The longest of them.
    pub longest_ms: u64,
    /// Their sum.
    pub total_ms: u64,
}

impl StageTimes {
    /// Adds the time of a part.
    pub(super) fn add(&mut self, ms: u64) {
        self.longest_ms = self.longest_ms.max(ms);
        self.total_ms = self.total_ms.saturating_add(ms);
    }

    /// The time of the stage if `jobs` parts run at once.
    fn estimate(&self, jobs: u32) -> u64 {
        self.longest_ms.max(self.total_ms / u64::from(jobs.max(1)))
    }
}

/// A stage in the last build that completed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageHistory {
    /// Times of its parts.
    pub took: StageTimes,
    /// The digest of its manifest.
    pub output: Option<Digest>,
}

/// By stage; a stage that is missing counts as one that needs no time.
#[derive(Clone, Debug, Default)]
pub struct History(pub BTreeMap<String, StageHistory>);

impl History {
    /// For each stage of `plan`, the estimated time in milliseconds from its end to the end of the
    /// build: the longest path through its consumers.
    pub(super) fn critical_paths(&self, plan: &Plan, jobs: u32) -> Vec<u64> {
        let mut index = BTreeMap::new();
        for (place, stage) in plan.stages.iter().enumerate() {
            index.insert(&stage.id, place);
        }
        let mut critical_paths = vec![0; plan.stages.len()];
        // Backwards: the path of a stage is complete before it is added to those of its producers.
        for (place, stage) in plan.stages.iter().enumerate().rev() {
            let took = match self.0.get(&stage.id.0) {
                Some(history) => history.took.estimate(jobs),
                None => 0,
            };
            let path = took.saturating_add(critical_paths[place]);
            for producer in stage.dependencies() {
                if let Some(producer) = index.get(producer) {
                    critical_paths[*producer] = path.max(critical_paths[*producer]);
                }
            }
        }
        critical_paths
    }
}
