//! What the scheduler and its driver say to each other.

use std::sync::Arc;
use std::time::Duration;

use petgraph::graph::NodeIndex;

use super::{CompletedStage, JobId, Past, Task};
use crate::action::Inputs;
use crate::base::{Digest, Result};
use crate::events::{Event, PartId, Why};
use crate::store::ActionResult;

/// A stage by its place in the plan.
pub type StageIndex = NodeIndex;

/// What may be in use at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Busy threads. With none, nothing runs: that is a dry run.
    pub jobs: u32,
    /// Memory of all that runs.
    pub memory_bytes: u64,
    /// After a failure, whether that goes on which does not need what failed.
    pub keep_going: bool,
}

/// What the driver reports.
#[allow(missing_docs)] // a variant says what its fields are
pub enum Input {
    /// The build begins.
    Begin,
    /// The answer to [`Effect::LookUp`].
    LookedUp {
        stage: StageIndex,
        completed: Result<Option<CompletedStage>>,
    },
    /// The answer to [`Effect::Expand`].
    Expanded {
        stage: StageIndex,
        tasks: Result<Vec<Task>>,
    },
    /// The answer to [`Effect::Probe`].
    Probed { job: JobId, answer: Result<Answer> },
    /// A running job has come this far. Answers nothing.
    Progressed {
        job: JobId,
        done: u64,
        total: u64,
        unit: String,
    },
    /// The answer to [`Effect::Run`]; the result is in the cache already.
    Ran {
        job: JobId,
        result: Result<ActionResult>,
    },
    /// The build is to be stopped.
    Cancel,
}

/// What the cache knows of an action.
pub enum Answer {
    /// Its result, with all its blobs.
    Hit(ActionResult),
    /// It must run, for these reasons; and what it took when it ran last, if it did.
    Miss(Vec<Why>, Option<Past>),
}

/// What the driver is to do.
#[allow(missing_docs)] // a variant says what its fields are
pub enum Effect {
    /// Look whether an earlier build completed this very stage, from inputs of these digests.
    LookUp {
        stage: StageIndex,
        producers: Vec<Digest>,
    },
    /// Make the stage's work orders into tasks.
    Expand { stage: StageIndex, inputs: Inputs },
    /// Look for the task in the cache.
    Probe {
        job: JobId,
        part: PartId,
        task: Task,
    },
    /// Run the task and put its result into the cache; not before `delay` is over.
    Run {
        job: JobId,
        stage: StageIndex,
        task: Task,
        delay: Duration,
    },
    /// Note that the stage is complete, for later builds. Needs no answer.
    Note {
        stage: StageIndex,
        completed: Arc<CompletedStage>,
    },
    /// Tell it to the listeners.
    Emit(Event),
    /// Everything is said; no answer is outstanding.
    Finish,
}
