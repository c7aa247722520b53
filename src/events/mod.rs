//! Floor 4: what is told of a build, and its listeners.

mod event;

pub use event::{Event, Listener, PartId, Why};
