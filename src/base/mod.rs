//! Floor 0: digests, canonical text, problems and units. Knows nobody.

mod canon;
mod digest;
mod problem;
mod units;

pub use canon::CanonJson;
pub use digest::{Digest, Hasher, hash_bytes};
pub use problem::{Context, Problem, Result};
pub use units::{by_number, bytes, count, duration, parse_bytes};
