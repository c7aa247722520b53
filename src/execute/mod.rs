//! Floor 4: where actions run: a thread, or a child process.

mod child;
mod local;
mod work;
mod workspace;

pub use local::Local;
pub use work::{die_with_parent, work};

use crate::action::{Action, Demand, Outputs};
use crate::base::Result;

/// Runs actions. The outputs' blobs are durable when `run` returns.
pub trait Executor: Send + Sync {
    /// Runs `action` to its end.
    fn run(&self, action: &Action, demand: &Demand, watch: &dyn Watch) -> Result<Ran>;
}

/// What one run gave.
pub struct Ran {
    /// Its outputs.
    pub outputs: Outputs,
    /// Measured peak of resident memory, where it ran in a process of its own.
    pub peak_memory_bytes: Option<u64>,
}

/// Who looks on while an action runs.
pub trait Watch: Sync {
    /// It has done `done` of `total` `unit`s.
    fn progress(&self, done: u64, total: u64, unit: &str);

    /// Whether it should stop.
    fn cancelled(&self) -> bool;
}
