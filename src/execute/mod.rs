//! Runs actions: on a thread or in a child process.

mod child;
mod local;
mod protocol;
mod work;
mod workspace;

pub use local::Local;
pub use work::{die_with_parent, work};

use crate::action::{Action, Demand, Outputs};
use crate::base::Result;

/// Runs actions. The outputs' blobs are durable when `run` returns.
pub trait Executor: Send + Sync {
    /// Runs `action` until it ends or is cancelled.
    fn run(&self, action: &Action, demand: &Demand, watch: &dyn Watch) -> Result<RunOutput>;
}

/// The result of one run.
pub struct RunOutput {
    /// The outputs of the action.
    pub outputs: Outputs,
    /// Measured peak of resident memory, in bytes, if it ran in a child process.
    pub peak_memory_bytes: Option<u64>,
}

/// Observes and stops a running action.
pub trait Watch: Sync {
    /// Receives progress: `done` of `total` `unit`s.
    fn progress(&self, done: u64, total: u64, unit: &str);

    /// Whether the action should stop.
    fn cancelled(&self) -> bool;
}
