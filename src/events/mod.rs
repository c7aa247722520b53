//! Floor 4: what is told of a build, and its listeners.

mod event;
mod json;
mod plain;
mod summary;
mod terminal;

pub use event::{Event, Listener, PartId, Why};
pub use json::JsonLines;
pub use plain::Plain;
pub use summary::{StageTally, Summary};
pub use terminal::Bars;
