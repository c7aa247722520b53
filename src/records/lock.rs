//! The lock: the record of a build as TOML beside the plan, made to be reviewed as a diff. It is
//! read as if an enemy had written it.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::build_record::{BuildRecord, VERSION};
use super::outline::Kept;
use crate::base::atomic::write_atomic;
use crate::base::{Code, Context, Problem, Result, bytes, has_bytes, open_file};

/// Cap on the text of a lock: a part needs 200 bytes, so it holds a third of a million.
const MAX_BYTES: u64 = 64 << 20;

const HEAD: &str = "# What this plan comes to, byte for byte. Written by `kiln build --lock`; \
                    `--locked` and `kiln verify` hold to it.\n\n";

/// Where the lock of a plan is.
pub fn beside(plan: &Path) -> PathBuf {
    plan.with_extension("lock")
}

/// What to say where there is none.
pub fn none_at(path: &Path) -> Problem {
    Problem::new(
        Code::CallNoLock,
        format!("there is no lock at {}", path.display()),
    )
    .help("write it: kiln build PLAN.toml --lock; then commit it beside the plan")
}

/// The form alone.
#[derive(Deserialize)]
struct Form {
    version: u32,
}

impl BuildRecord {
    /// Reads the lock at `path`.
    pub fn read_lock(path: &Path) -> Result<BuildRecord> {
        let failed = || format!("read the lock {}", path.display());
        let mut text = String::new();
        let file = open_file(path).context(Code::CallLock, failed)?;
        file.take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .context(Code::CallLock, failed)?;
        if text.len() as u64 > MAX_BYTES {
            let message = format!(
                "{} has more than {}, which no lock has",
                path.display(),
                bytes(MAX_BYTES)
            );
            return Err(Problem::new(Code::CallLock, message));
        }
        let failed = || format!("read the lock {}", path.display());
        let mended =
            |problem: Problem| problem.help("a lock is written by `kiln build PLAN.toml --lock`");
        let Form { version } = toml::from_str(&text)
            .context(Code::CallLock, failed)
            .map_err(mended)?;
        if version != VERSION {
            let message = format!(
                "{} has version {version}, this kiln knows {VERSION}",
                path.display()
            );
            return Err(Problem::new(Code::CallLock, message)
                .help("write it again: kiln build PLAN.toml --lock"));
        }
        let record: BuildRecord = toml::from_str(&text)
            .context(Code::CallLock, failed)
            .map_err(mended)?;
        match record
            .stage
            .iter()
            .find(|(_, made)| made.keep != Kept::All(false) && made.artifacts.is_empty())
        {
            None => Ok(record),
            Some((stage, _)) => {
                let message = format!(
                    "{} names no artifact of `{stage}`, which is kept: it is cut",
                    path.display()
                );
                Err(mended(Problem::new(Code::CallLock, message)))
            }
        }
    }

    /// Puts the lock at `path`, whole or not at all; yields whether another one, or none, was
    /// there.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_before_a_lock_says_nothing() {
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
        assert!(twice.is_err(), "a mark stands at the beginning alone");
    }
}
