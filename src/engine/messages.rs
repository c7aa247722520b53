//! The messages between the scheduler and its driver.

use std::sync::Arc;
use std::time::Duration;

use petgraph::graph::NodeIndex;

use super::{CompletedStage, JobId, PastRun, Task};
use crate::action::Inputs;
use crate::base::{Digest, Result};
use crate::events::{Event, PartId, Why};
use crate::store::ActionResult;

/// A stage, by its index in the plan.
pub type StageIndex = NodeIndex;

/// Limits of resources, and what happens after a failure.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Busy threads. With 0, nothing runs: a dry run.
    pub jobs: u32,
    /// Memory of all running jobs.
    pub memory_bytes: u64,
    /// Whether stages that do not depend on a failed one continue.
    pub keep_going: bool,
}

/// A message from the driver.
#[allow(missing_docs)] // the docs of a variant describe its fields
pub enum Input {
    /// The build begins.
    Begin,
    /// The answer to [`Effect::LookUp`].
    LookedUp {
        stage: StageIndex,
        completed: Result<Option<CompletedStage>>,
    },
    /// The answer to [`Effect::Foresee`].
    Foreseen {
        stage: StageIndex,
        result: Result<()>,
    },
    /// The answer to [`Effect::Expand`].
    Expanded {
        stage: StageIndex,
        tasks: Result<Vec<Task>>,
    },
    /// The answer to [`Effect::Probe`].
    Probed {
        job: JobId,
        result: Result<ProbeResult>,
    },
    /// Progress of a running job. Not an answer to an effect.
    Progressed {
        job: JobId,
        done: u64,
        total: u64,
        unit: String,
    },
    /// The answer to [`Effect::Run`]. The result has been put into the cache.
    Ran {
        job: JobId,
        result: Result<ActionResult>,
    },
    /// The build should stop.
    Cancel,
}

/// The outcome of looking for an action in the cache.
pub enum ProbeResult {
    /// Its result; all blobs exist.
    Hit(ActionResult),
    /// It must run, for these reasons; and time and memory of its last run, if there was one.
    Miss(Vec<Why>, Option<PastRun>),
}

/// A message to the driver: what it should do.
#[allow(missing_docs)] // the docs of a variant describe its fields
pub enum Effect {
    /// Find out whether an earlier build completed the stage, with inputs of these digests.
    LookUp {
        stage: StageIndex,
        producers: Vec<Digest>,
    },
    /// Find out whether the stage must fail, by the inputs that are complete.
    Foresee { stage: StageIndex, inputs: Inputs },
    /// Expand the stage into tasks.
    Expand { stage: StageIndex, inputs: Inputs },
    /// Look for the task in the cache.
    Probe {
        job: JobId,
        part: PartId,
        task: Task,
    },
    /// Run the task after `delay`, and put its result into the cache.
    Run {
        job: JobId,
        stage: StageIndex,
        task: Task,
        delay: Duration,
    },
    /// Store the completed stage for later builds. Needs no answer.
    Note {
        stage: StageIndex,
        completed: Arc<CompletedStage>,
    },
    /// Send an event to the listeners. Needs no answer.
    Emit(Event),
    /// The build has ended; no answer is outstanding.
    Finish,
}
