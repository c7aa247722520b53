//! Digests, canonical JSON, problems, files, processes and text for people. Uses no other module.

pub mod atomic;
mod canon;
mod code;
mod digest;
mod files;
mod problem;
mod processes;
mod secrets;
mod shell;
mod shown;
mod units;
mod words;

pub use canon::CanonJson;
pub use code::{Class, Code};
pub use digest::{Digest, Hasher, hash_bytes};
pub use files::{has_bytes, head, new_file_in, open_file, read_file, tail};
pub use problem::{Context, Problem, Result};
pub use processes::{adopt_orphans, kill_descendants, kill_descendants_of};
pub use secrets::{mask_secrets, without_secrets};
pub use shell::quoted;
pub use shown::{masked, shown, shown_json, shown_line, without_commands};
pub use units::{bytes, count, duration, natural_order, parse_bytes};
pub use words::{closest, hint, near};
