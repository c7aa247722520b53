//! Reads wheels. A wheel is an untrusted zip archive: its digest is checked later, and never if the
//! pin is of a member.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;

use super::{base_name, open};
use crate::action::PartName;
use crate::base::{Code, Context, Problem, Result, bytes};

/// Maximum ratio of unpacked to packed size. Wheels of compiled libraries have about 3; a zip bomb
/// has up to 1032, the limit of deflate.
const MAX_RATIO: u64 = 100;
/// Unpacked size up to which any ratio is accepted.
const FREE_BYTES: u64 = 64 << 20;

/// An open wheel, of which every member's name, size and position are checked.
pub(super) struct Wheel {
    archive: ZipArchive<BufReader<File>>,
}

fn bad(message: impl Into<String>) -> Problem {
    Problem::new(Code::FetchWheel, message)
        .help("a wheel like this was not made by a packager; do not use it")
}

impl Wheel {
    /// Opens the wheel at `path` and checks every entry before anything is unpacked.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = || format!("open the wheel {}", path.display());
        let file = open(path)?;
        let size_bytes = file.metadata().context(Code::FetchWheel, failed)?.len();
        let archive = ZipArchive::new(BufReader::new(file));
        let mut wheel = Wheel {
            archive: archive.context(Code::FetchWheel, failed)?,
        };
        wheel.check(size_bytes.saturating_mul(MAX_RATIO).max(FREE_BYTES))?;
        Ok(wheel)
    }

    /// Fails if an entry is not safe to unpack, or if all together have more than `limit` bytes.
    fn check(&mut self, limit: u64) -> Result<()> {
        if self.archive.has_duplicate_names() {
            return Err(bad("the wheel has two members of one name"));
        }
        let mut total = 0u64;
        for index in 0..self.archive.len() {
            let entry = self
                .archive
                .by_index_data(index)
                .context(Code::FetchWheel, || format!("read entry {index}"))?;
            let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
            PartName::new(name.strip_suffix('/').unwrap_or(&name))
                .map_err(|problem| bad("a member leaves the wheel").because(&problem))?;
            if entry.encrypted() {
                return Err(bad(format!("the member `{name}` is encrypted")));
            }
            if entry.is_symlink() {
                return Err(bad(format!("the member `{name}` is a symbolic link")));
            }
            total = total.saturating_add(entry.size());
        }
        if total > limit {
            return Err(bad(format!(
                "the wheel would unpack to {}; the limit for its size is {}",
                bytes(total),
                bytes(limit)
            )));
        }
        if self
            .archive
            .has_overlapping_files()
            .context(Code::FetchWheel, || "find the members".into())?
        {
            return Err(bad("members of the wheel share their bytes"));
        }
        Ok(())
    }

    /// The index of the member `name`.
    pub(super) fn find(&self, name: &str) -> Result<usize> {
        if let Some(index) = self.archive.index_for_name(name) {
            return Ok(index);
        }
        let names: Vec<_> = self.names().collect();
        let nearest = names
            .iter()
            .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
        let help = match nearest {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "it is empty".into(),
        };
        let message = format!("the wheel has no member `{name}` among its {}", names.len());
        Err(Problem::new(Code::FetchMember, message).help(help))
    }

    /// The file name and index of every shared library.
    pub(super) fn libraries(&self) -> Result<BTreeMap<PartName, usize>> {
        let mut libraries = BTreeMap::new();
        for (index, name) in self.names().enumerate() {
            let file = base_name(&name);
            if !(file.ends_with(".so") || file.contains(".so.")) {
                continue;
            }
            if libraries
                .insert(PartName::new(file.clone())?, index)
                .is_some()
            {
                return Err(bad(format!("the wheel has two libraries named `{file}`")));
            }
        }
        if libraries.is_empty() {
            return Err(
                Problem::new(Code::FetchWheel, "there is no shared library in the wheel")
                    .help("`unpack = true`, and [tools], are for wheels of compiled libraries"),
            );
        }
        Ok(libraries)
    }

    fn names(&self) -> impl Iterator<Item = String> {
        self.archive
            .file_names_raw()
            .map(|name| String::from_utf8_lossy(name).into_owned())
    }

    /// The bytes of a member. Reading fails if their number is not the declared one.
    pub(super) fn member(&mut self, index: usize) -> Result<impl Read> {
        let file = self
            .archive
            .by_index(index)
            .context(Code::FetchWheel, || format!("open entry {index}"))?;
        let remaining = file.size();
        Ok(ExactReader { file, remaining })
    }
}

/// A reader that fails unless `file` has exactly `remaining` more bytes.
struct ExactReader<R> {
    file: R,
    remaining: u64,
}

impl<R: Read> Read for ExactReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        let ends_early = count == 0 && !buffer.is_empty() && self.remaining > 0;
        match self.remaining.checked_sub(count as u64) {
            Some(remaining) if !ends_early => {
                self.remaining = remaining;
                Ok(count)
            }
            _ => Err(std::io::Error::other(
                "a member of the wheel does not have its declared size",
            )),
        }
    }
}
