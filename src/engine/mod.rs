//! Decides which actions run, and when. Knows no stage kind.
//!
//! The [`Scheduler`] decides and is pure. A [`Build`] performs its effects and returns their
//! results to it.
//!
//! A stage expands into work orders, one per part. A work order with its action and key is a
//! [`Task`]. Tasks with equal keys are one job, which runs once.

mod completed;
mod drive;
mod explain;
mod history;
mod look_up;
mod messages;
mod monitor;
mod pool;
mod proof;
mod record;
mod schedule;
mod select;
mod state;
mod workers;

pub use completed::{CompletedStage, StageDetails};
pub use drive::Build;
pub use explain::{differences, reasons};
pub use history::{History, StageHistory, StageTimes};
pub use look_up::StageCache;
pub use messages::{Effect, Input, Limits, ProbeResult, StageIndex};
pub use proof::{is_proved, note_proof};
pub use record::Record;
pub use schedule::Scheduler;
pub use select::select;
pub use state::{Built, BuiltPart, JobId, JobState, PastRun, StageState, Task};
