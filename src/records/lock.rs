//! The lock: the record of a build as TOML beside the plan, for review as a diff. Its content is
//! not trusted.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::build_record::{BuildRecord, VERSION};
use super::outline::Kept;
use crate::base::atomic::write_atomic;
use crate::base::{Code, Context, Problem, Result, bytes, has_bytes, open_file};

/// Cap on the size of a lock. A part needs 200 bytes, so this is enough for 300,000 parts.
const MAX_BYTES: u64 = 64 << 20;

const HEAD: &str = "# What this plan comes to, byte for byte. Written by `kiln build --lock`; \
                    `--locked` and `kiln verify` hold to it.\n\n";

/// The path of the lock of a plan.
pub fn beside(plan: &Path) -> PathBuf {
    plan.with_extension("lock")
}

/// The problem that there is no lock at `path`.
pub fn none_at(path: &Path) -> Problem {
    Problem::new(
        Code::CallNoLock,
        format!("there is no lock at {}", path.display()),
    )
    .help("write it: kiln build PLAN.toml --lock; then commit it beside the plan")
}

/// The version of a lock, which can be read from a lock of any version.
#[derive(Deserialize)]
struct Header {
    version: u32,
}

impl BuildRecord {
    /// Reads the lock at `path`.
    pub fn read_lock(path: &Path) -> Result<BuildRecord> {
        let text = read_text(path)?;
        parse(&text, path).map_err(|problem| match problem.help {
            Some(_) => problem,
            None => problem.help("a lock is written by `kiln build PLAN.toml --lock`"),
        })
    }

    /// Writes the lock to `path` atomically. Returns whether the file changed.
    pub fn write_lock(&self, path: &Path) -> Result<bool> {
        let failed = || format!("write the lock {}", path.display());
        let text = HEAD.to_string() + &toml::to_string(self).context(Code::CallLock, failed)?;
        if has_bytes(path, text.as_bytes()) {
            return Ok(false);
        }
        write_atomic(path, text.as_bytes()).context(Code::CallLock, failed)?;
        Ok(true)
    }
}

fn read_text(path: &Path) -> Result<String> {
    let failed = || format!("read the lock {}", path.display());
    let file = open_file(path).context(Code::CallLock, failed)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .context(Code::CallLock, failed)?;
    if text.len() as u64 > MAX_BYTES {
        let message = format!(
            "{} has more than {}, the maximum size of a lock",
            path.display(),
            bytes(MAX_BYTES)
        );
        return Err(Problem::new(Code::CallLock, message));
    }
    Ok(text)
}

fn parse(text: &str, path: &Path) -> Result<BuildRecord> {
    let failed = || format!("read the lock {}", path.display());
    let Header { version } = toml::from_str(text).context(Code::CallLock, failed)?;
    if version != VERSION {
        let message = format!(
            "{} has version {version}, this kiln reads version {VERSION}",
            path.display()
        );
        return Err(Problem::new(Code::CallLock, message)
            .help("write it again: kiln build PLAN.toml --lock"));
    }
    let record: BuildRecord = toml::from_str(text).context(Code::CallLock, failed)?;
    for (name, stage) in &record.stage {
        if stage.keep != Kept::All(false) && stage.artifacts.is_empty() {
            let message = format!(
                "{} is incomplete: it has no artifact of `{name}`, which is written out",
                path.display()
            );
            return Err(Problem::new(Code::CallLock, message));
        }
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_before_a_lock_is_ignored() {
        let text = include_str!("../../plans/smollm2-135m.lock");
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let path = folder.path().join("plan.lock");
            std::fs::write(&path, text).unwrap();
            BuildRecord::read_lock(&path)
        };
        let marked = read(&format!("\u{feff}{text}"));
        assert_eq!(marked.unwrap(), read(text).unwrap());
        let twice = read(&format!("\u{feff}\u{feff}{text}"));
        assert!(twice.is_err(), "a mark is only valid at the beginning");
    }
}
