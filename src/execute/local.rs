//! This machine: threads of this process, and child processes.

use std::path::PathBuf;

use super::workspace::LocalWorkspace;
use super::{Executor, Ran, Watch, child};
use crate::action::{Action, Demand, Isolation, Job, Outputs, Registry};
use crate::base::{Code, Digest, Problem, Result};
use crate::store::LocalStore;

/// Runs actions on the calling thread or in a child process, as their demand says.
pub struct Local<'a> {
    /// Where blobs come from and go to.
    pub store: &'a dyn LocalStore,
    /// The stages it can run.
    pub stages: &'a Registry,
    /// What to start as `PROGRAM work ...`: kiln itself, best as `/proc/self/exe`, which stays the
    /// same program when its file is replaced during a build.
    pub program: PathBuf,
}

impl Executor for Local<'_> {
    fn run(&self, action: &Action, demand: &Demand, watch: &dyn Watch) -> Result<Ran> {
        match demand.isolation {
            Isolation::Thread => {
                let outputs = run_here(self.store, self.stages, action, watch)?;
                Ok(Ran {
                    outputs,
                    peak_memory_bytes: None,
                })
            }
            Isolation::Process => child::run(&self.program, self.store, action, demand, watch),
        }
    }
}

/// Runs `action` on this thread.
pub(super) fn run_here(
    store: &dyn LocalStore,
    stages: &Registry,
    action: &Action,
    watch: &dyn Watch,
) -> Result<Outputs> {
    let Action {
        stage: kind,
        version,
        ..
    } = action;
    let stage = stages.get(kind).ok_or_else(|| {
        Problem::new(
            Code::ExecuteUnknownStage,
            format!("this kiln has no stage kind `{kind}`"),
        )
    })?;
    if stage.spec().version != *version {
        let message = format!(
            "the action wants version {version} of `{kind}`, this kiln has {}",
            stage.spec().version
        );
        return Err(Problem::new(Code::ExecuteStageVersion, message)
            .help("kiln was replaced while it ran: call it again"));
    }
    let workspace = LocalWorkspace::new(store, watch);
    let outputs = stage.run(action, &Job::new(action, &workspace))?;
    let blobs: Vec<Digest> = outputs.values().map(|part| part.content.blob()).collect();
    if let Some(blob) = store.missing(&blobs)?.first() {
        let message =
            format!("stage `{kind}` names {blob} as an output, but did not put it into the cache");
        return Err(Problem::new(Code::ExecuteOutputMissing, message));
    }
    workspace.clear()?;
    Ok(outputs)
}
