//! The events of a build and their listeners: terminal, logs and reports.

mod board;
mod event;
mod failures;
mod json;
mod junit;
mod log;
mod plain;
mod summary;
mod terminal;
mod trace;
mod why;

pub use board::Board;
pub use event::{Event, Listener, PartId, SCHEMA, TimedListener};
pub use failures::{Failure, Failures};
pub use json::{JsonLines, LoggedEvent};
pub use junit::Junit;
pub use log::LogReader;
pub use plain::Plain;
pub use summary::{StageTally, Summary};
pub use terminal::Bars;
pub use trace::Trace;
pub use why::{Why, in_short};

use crate::base::Result;

/// A listener that produces a file at the end of a build.
pub trait Report: TimedListener {
    /// The content of the file.
    fn file(&self) -> Result<Vec<u8>>;
}
