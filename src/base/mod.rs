//! Floor 0: digests, canonical text, problems and units. Knows nobody.

pub mod atomic;
mod canon;
mod code;
mod digest;
mod family;
mod files;
mod problem;
mod secrets;
mod shell;
mod shown;
mod units;
mod words;

pub use canon::CanonJson;
pub use code::{Class, Code};
pub use digest::{Digest, Hasher, hash_bytes};
pub use family::{adopt_orphans, end_below, end_descendants};
pub use files::{head, is_file_of, new_file_in, open_file, read_file, tail};
pub use problem::{Context, Problem, Result};
pub use secrets::{mask_secrets, without_secrets};
pub use shell::quoted;
pub use shown::{masked, shown, shown_json, shown_line, without_commands};
pub use units::{by_number, bytes, count, duration, parse_bytes};
pub use words::{closest, hint, near};
