//! Records of builds: the receipt and the lock (a [`BuildRecord`] as JSON and as TOML), their
//! comparison, and provenance.

mod build_record;
pub mod compare;
pub mod lock;
mod name;
mod outline;
pub mod provenance;

pub use build_record::{Artifact, BuildRecord, StageRecord};
pub use name::Name;
pub use outline::{Kept, Outline, StageOutline};
