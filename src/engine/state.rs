//! The lives of stages and of jobs.
//!
//! ```text
//! stage   Waiting -> Recalling -> Sealed                            as an earlier build left it
//!         Waiting -> Recalling -> Expanding -> Working -> Sealed
//!         Waiting -> Skipped;  Recalling, Expanding, Working -> Failed
//!
//! job     Probing -> Done                          a hit
//!         Probing -> Ready -> Running -> Done      a run
//!         Running -> Running                       tried again
//!         Probing, Running -> Failed;  Running -> Stopped
//! ```
//!
//! A build that stops early leaves stages and jobs where they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::CompletedStage;
use crate::action::{Action, ActionKey, Demand, Outputs, Proof, Smaller};
use crate::events::{PartId, Why};
use crate::plan::StageId;

/// A work order as an action: one part of a stage.
#[derive(Clone, Debug)]
pub struct Task {
    /// The order's name in its stage; empty for a single one.
    pub name: String,
    /// What is to be done.
    pub action: Arc<Action>,
    /// Its key.
    pub key: ActionKey,
    /// What it needs while it runs.
    pub demand: Demand,
    /// What to do where that is too much, the mildest first.
    pub smaller: Arc<[Smaller]>,
    /// See [`Stage::is_volatile`](crate::action::Stage::is_volatile).
    pub is_volatile: bool,
    /// See [`Stage::proof`](crate::action::Stage::proof).
    pub proof: Proof,
}

/// A distinct action of this build. Parts with equal keys share one job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobId(pub(super) usize);

/// Where a stage stands.
#[allow(missing_docs)] // a variant says what its fields are
#[derive(Clone, Debug)]
pub enum StageState {
    /// For the stages it takes from.
    Waiting,
    /// Its inputs are there; earlier builds are being asked for it.
    Recalling,
    /// Its orders are being made.
    Expanding,
    /// Its parts: order name and job, and how many of them are not done.
    Working {
        parts: Vec<(String, JobId)>,
        open: usize,
    },
    /// Every part is there.
    CompletedStage(Arc<CompletedStage>),
    /// Its inputs, its expansion, a part of it or the sealing went wrong.
    Failed,
    /// A stage it waits for failed or was skipped.
    Skipped,
}

/// Where a job stands.
#[allow(missing_docs)] // a variant says what its fields are
#[derive(Clone, Debug)]
pub enum JobState {
    /// The cache is being asked.
    Probing,
    /// It must run, for these reasons, once there is room.
    Ready { why: Vec<Why> },
    /// It runs.
    Running,
    /// Its outputs are there; `hit` says whether the cache had them.
    Done {
        outputs: Outputs,
        hit: bool,
        took_ms: u64,
    },
    /// It went wrong.
    Failed,
    /// It was interrupted.
    Stopped,
}

impl JobState {
    /// The outputs of a job that is done.
    pub fn outputs(&self) -> Option<&Outputs> {
        match self {
            JobState::Done { outputs, .. } => Some(outputs),
            _ => None,
        }
    }

    /// What a job that is done took when it ran.
    pub(super) fn took_ms(&self) -> u64 {
        match self {
            JobState::Done { took_ms, .. } => *took_ms,
            _ => 0,
        }
    }
}

/// What an action took when it ran last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// Wall time.
    pub took_ms: u64,
    /// Measured peak of resident memory, where it ran in a process of its own.
    pub peak_memory_bytes: Option<u64>,
}

/// What a build came to.
#[derive(Default)]
pub struct Built {
    /// The stages that are complete.
    pub completed: BTreeMap<StageId, Arc<CompletedStage>>,
    /// Every part that was looked for, in the order of the plan: not those of stages that an
    /// earlier build completed.
    pub parts: Vec<BuiltPart>,
}

/// A part of a stage at the end of a build.
pub struct BuiltPart {
    /// Where it belongs.
    pub id: PartId,
    /// What it asks.
    pub task: Task,
    /// How far it came.
    pub state: JobState,
}
