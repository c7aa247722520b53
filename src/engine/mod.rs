//! Floor 5: decides what runs when. Names no stage.
//!
//! [`Scheduler`] decides and is pure; [`Build`] does what it says and brings back what came of it.

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
pub use history::{Before, History, Took};
pub use look_up::Memory;
pub use messages::{Answer, Effect, Input, Limits, StageIndex};
pub use proof::{holds as is_proved, note as note_proof};
pub use record::Record;
pub use schedule::Scheduler;
pub use select::select;
pub use state::{Built, BuiltPart, JobId, JobState, Past, StageState, Task};
