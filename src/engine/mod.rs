//! Floor 5: decides what runs when. Names no stage.
//!
//! [`Scheduler`] decides and is pure; [`Build`] does what it says and brings back what came of it.

mod crew;
mod dialogue;
mod drive;
mod explain;
mod history;
mod life;
mod onlooker;
mod proof;
mod recall;
mod record;
mod room;
mod schedule;
mod sealed;
mod select;

pub use dialogue::{Answer, Effect, Input, Limits, StageIndex};
pub use drive::Build;
pub use explain::{differences, reasons};
pub use history::{Before, History, Took};
pub use life::{Built, BuiltPart, JobId, JobLife, Past, StageLife, Task};
pub use proof::{holds as is_proved, note as note_proof};
pub use recall::Memory;
pub use record::Record;
pub use schedule::Scheduler;
pub use sealed::{Sealed, Whole};
pub use select::select;
