//! The executor of this machine: threads of this process, and child processes.

use std::path::PathBuf;

use super::workspace::LocalWorkspace;
use super::{Executor, RunOutput, Watch, child};
use crate::action::{Action, Demand, Isolation, Job, Outputs, Registry};
use crate::base::{Code, Digest, Problem, Result};
use crate::store::LocalStore;

/// Runs actions on the calling thread or in a child process, depending on their demand.
pub struct Local<'a> {
    /// The store of blobs.
    pub store: &'a dyn LocalStore,
    /// The stages it can run.
    pub stages: &'a Registry,
    /// The program to start as `PROGRAM work ...`: kiln itself. `/proc/self/exe` stays the same
    /// program if its file is replaced during a build.
    pub program: PathBuf,
}

impl Executor for Local<'_> {
    fn run(&self, action: &Action, demand: &Demand, watch: &dyn Watch) -> Result<RunOutput> {
        match demand.isolation {
            Isolation::Thread => {
                let outputs = run_here(self.store, self.stages, action, watch)?;
                Ok(RunOutput {
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
    let Some(stage) = stages.get(kind) else {
        let message = format!("this kiln has no stage kind `{kind}`");
        return Err(Problem::new(Code::ExecuteUnknownStage, message));
    };
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
    let mut blobs: Vec<Digest> = vec![];
    for part in outputs.values() {
        blobs.push(part.content.blob());
    }
    if let Some(blob) = store.missing(&blobs)?.first() {
        let message =
            format!("stage `{kind}` names {blob} as an output, but did not put it into the cache");
        return Err(Problem::new(Code::ExecuteOutputMissing, message));
    }
    workspace.remove_partials()?;
    Ok(outputs)
}
