//! A wheel: a zip that may be hostile until its digest is known, and stays so where only a member
//! is pinned.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;

use super::{base_name, open};
use crate::action::PartName;
use crate::base::{Code, Context, Problem, Result, bytes};

/// Wheels of compiled libraries shrink to a third; a zip bomb to a thousandth (deflate's limit is
/// 1/1032).
const MAX_RATIO: u64 = 100;
/// Small archives may shrink as they like.
const FREE_BYTES: u64 = 64 << 20;

/// An open wheel, every member of which has a decent name, size and place.
pub(super) struct Wheel {
    archive: ZipArchive<BufReader<File>>,
}

fn bad(message: impl Into<String>) -> Problem {
    Problem::new(Code::FetchWheel, message)
        .help("a wheel like this was not made by a packager; do not use it")
}

impl Wheel {
    /// Opens the wheel at `path` and looks at every entry before a byte is unpacked.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = open(path)?;
        let limit = file
            .metadata()
            .map_or(0, |meta| meta.len())
            .saturating_mul(MAX_RATIO)
            .max(FREE_BYTES);
        let archive = ZipArchive::new(BufReader::new(file));
        let mut wheel = Wheel {
            archive: archive.context(Code::FetchWheel, || {
                format!("open the wheel {}", path.display())
            })?,
        };
        wheel.check(limit)?;
        Ok(wheel)
    }

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
        self.archive.index_for_name(name).ok_or_else(|| {
            let names: Vec<_> = self.names().collect();
            let near = names
                .iter()
                .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
            Problem::new(
                Code::FetchMember,
                format!("the wheel has no member `{name}` among its {}", names.len()),
            )
            .help(near.map_or("it is empty".into(), |near| {
                format!("did you mean `{near}`?")
            }))
        })
    }

    /// Every shared library by its file name, with its index.
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

    /// The bytes of a member; reading fails if they are not exactly as many as declared.
    pub(super) fn member(&mut self, index: usize) -> Result<impl Read> {
        let file = self
            .archive
            .by_index(index)
            .context(Code::FetchWheel, || format!("open entry {index}"))?;
        let left = file.size();
        Ok(Exactly { file, left })
    }
}

/// A reader that must give exactly `left` more bytes.
struct Exactly<R> {
    file: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        let ends_early = count == 0 && !buffer.is_empty() && self.left > 0;
        match self.left.checked_sub(count as u64) {
            Some(left) if !ends_early => {
                self.left = left;
                Ok(count)
            }
            _ => Err(std::io::Error::other(
                "a member of the wheel is not as long as it says",
            )),
        }
    }
}
