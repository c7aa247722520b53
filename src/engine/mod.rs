//! Floor 5: decides what runs when. Names no stage.
//!
//! [`Scheduler`] decides and is pure; [`Build`] does what it says and brings back what came of it.

mod dialogue;
mod drive;
mod explain;
mod life;
mod record;
mod schedule;
mod seal;
mod select;

pub use dialogue::{Answer, Effect, Input, Limits, StageIndex};
pub use drive::Build;
pub use explain::{differences, reasons};
pub use life::{Built, BuiltPart, JobId, JobLife, StageLife, Task};
pub use record::Record;
pub use schedule::Scheduler;
pub use select::select;
