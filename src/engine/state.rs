//! The states of stages and jobs.
//!
//! ```text
//! stage   Waiting -> LookingUp -> Completed                         by an earlier build
//!         Waiting -> LookingUp -> Expanding -> Working -> Completed
//!         Waiting -> Skipped;  LookingUp, Expanding, Working -> Failed
//!
//! job     Probing -> Done                          a hit
//!         Probing -> Ready -> Running -> Done      a run
//!         Running -> Running                       a retry
//!         Probing, Running -> Failed;  Running -> Stopped
//! ```
//!
//! When a build stops early, stages and jobs stay in their states.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::CompletedStage;
use crate::action::{Action, ActionKey, Demand, Outputs, Proof, Smaller, Stage, WorkOrder};
use crate::base::Result;
use crate::events::{PartId, Why};
use crate::plan::StageId;

/// One part of a stage: a work order with its action.
#[derive(Clone, Debug)]
pub struct Task {
    /// The order's name in its stage; empty if the stage has one order.
    pub name: String,
    /// The action.
    pub action: Arc<Action>,
    /// Its key.
    pub key: ActionKey,
    /// What it needs while it runs.
    pub demand: Demand,
    /// What to change if the demand is too large, the smallest change first.
    pub smaller: Arc<[Smaller]>,
    /// See [`Stage::is_volatile`](crate::action::Stage::is_volatile).
    pub is_volatile: bool,
    /// See [`Stage::proof`](crate::action::Stage::proof).
    pub proof: Proof,
}

impl Task {
    /// The task of `order`, for a stage of kind `stage`.
    pub fn new(order: WorkOrder, stage: &dyn Stage, is_volatile: bool) -> Result<Self> {
        let name = order.name.clone();
        let demand = order.demand;
        let smaller = order.smaller.clone().into();
        let action = order.into_action(stage.spec());
        let proof = stage.proof(&action.params)?;
        Ok(Task {
            name,
            key: action.key(),
            action: Arc::new(action),
            demand,
            smaller,
            is_volatile,
            proof,
        })
    }
}

/// A distinct action of this build. Parts with equal keys share one job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JobId(pub(super) usize);

/// The state of a stage.
#[allow(missing_docs)] // the docs of a variant describe its fields
#[derive(Clone, Debug)]
pub enum StageState {
    /// Its dependencies are not complete.
    Waiting,
    /// Its inputs are complete; it is being looked up in the cache of completed stages.
    LookingUp,
    /// It is being expanded into work orders.
    Expanding,
    /// Its parts: order name and job, and the number of parts that are not done.
    Working {
        parts: Vec<(String, JobId)>,
        open: usize,
    },
    /// All parts are done.
    Completed(Arc<CompletedStage>),
    /// Its lookup, its expansion, one of its parts or its completion failed.
    Failed,
    /// A dependency failed or was skipped.
    Skipped,
}

/// The state of a job.
#[allow(missing_docs)] // the docs of a variant describe its fields
#[derive(Clone, Debug)]
pub enum JobState {
    /// It is being looked up in the action cache.
    Probing,
    /// It must run, for these reasons, and waits for resources.
    Ready { why: Vec<Why> },
    /// It runs.
    Running,
    /// It has outputs; `hit` if they come from the cache.
    Done {
        outputs: Outputs,
        hit: bool,
        took_ms: u64,
    },
    /// It failed.
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

    /// The run time of a job that is done, now or when its result was put into the cache.
    pub(super) fn took_ms(&self) -> u64 {
        match self {
            JobState::Done { took_ms, .. } => *took_ms,
            _ => 0,
        }
    }
}

/// Time and memory of the last run of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastRun {
    /// Wall time.
    pub took_ms: u64,
    /// Measured peak of resident memory, in bytes, if it ran in a child process.
    pub peak_memory_bytes: Option<u64>,
}

/// The result of a build.
#[derive(Default)]
pub struct Built {
    /// The completed stages.
    pub completed: BTreeMap<StageId, Arc<CompletedStage>>,
    /// All parts of the stages that were expanded, in the order of the plan. Stages that an earlier
    /// build completed are not expanded.
    pub parts: Vec<BuiltPart>,
}

/// A part of a stage at the end of a build.
pub struct BuiltPart {
    /// Stage and part.
    pub id: PartId,
    /// Its task.
    pub task: Task,
    /// The state of its job.
    pub state: JobState,
}
