//! What is recorded of a build: the receipt and the lock (one [`BuildRecord`], as JSON and as TOML),
//! what differs between two of them, and provenance.

mod build_record;
pub mod compare;
pub mod lock;
mod name;
mod outline;
pub mod provenance;

pub use build_record::{Artifact, BuildRecord, StageRecord};
pub use name::Name;
pub use outline::{Asked, Inside, Kept, Outline};
