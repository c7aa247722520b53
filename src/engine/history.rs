//! What stages took and gave in earlier builds. From it follow the roads: longest road first is how
//! a few workers end soonest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::Digest;
use crate::plan::Plan;

/// What a stage's parts took when they ran last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// The longest of them.
    pub longest_ms: u64,
    /// All of them, added up.
    pub total_ms: u64,
}

impl Took {
    /// Adds a part that took so long.
    pub(super) fn add(&mut self, ms: u64) {
        self.longest_ms = self.longest_ms.max(ms);
        self.total_ms = self.total_ms.saturating_add(ms);
    }

    /// How long the stage lasts when `jobs` parts run at once.
    fn with(&self, jobs: u32) -> u64 {
        self.longest_ms.max(self.total_ms / u64::from(jobs.max(1)))
    }
}

/// A stage in the last build that completed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// What it took.
    pub took: Took,
    /// The digest of its manifest.
    pub output: Option<Digest>,
}

/// By stage; one that is not named is taken to need no time.
#[derive(Clone, Debug, Default)]
pub struct History(pub BTreeMap<String, Before>);

impl History {
    /// For each stage of `plan`, the time from its end to the end of the build: the longest way
    /// through those that wait for it.
    pub(super) fn critical_paths(&self, plan: &Plan, jobs: u32) -> Vec<u64> {
        let place: BTreeMap<_, _> = plan
            .stages
            .iter()
            .enumerate()
            .map(|(place, stage)| (&stage.id, place))
            .collect();
        let mut critical_paths = vec![0; plan.stages.len()];
        // From the end, so that a stage's own road is known before it is added to those of its
        // givers.
        for (at, stage) in plan.stages.iter().enumerate().rev() {
            let took = self
                .0
                .get(&stage.id.0)
                .map_or(0, |before| before.took.with(jobs));
            let path = took.saturating_add(critical_paths[at]);
            for producer in stage
                .dependencies()
                .filter_map(|producer| place.get(producer))
            {
                critical_paths[*producer] = path.max(critical_paths[*producer]);
            }
        }
        critical_paths
    }
}
