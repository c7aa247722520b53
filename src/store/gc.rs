//! Removing what nothing keeps: the cache is looked over, then it is decided what goes, then that
//! is done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::LocalStore;
use super::audit::{entry, files_below};
use super::disk::Disk;
use super::folder::LockedFolder;
use super::layout::{self, Room};
use crate::action::ActionKey;
use crate::base::{Code, Context, Problem, Result};

/// What stays, and how much may. Without a limit, nothing stays that is not kept.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Results that stay whatever the limits say, and with them the blobs that their outputs lie
    /// in.
    pub kept: BTreeSet<ActionKey>,
    /// Other results, notes and half-finished downloads go when they were written longer ago than
    /// this.
    pub max_age: Option<Duration>,
    /// Other results go, the oldest first, until all blobs together have at most as many bytes.
    pub max_bytes: Option<u64>,
    /// The time by which things are old; what was written after it is new.
    pub now: SystemTime,
}

/// A number of results and blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Results.
    pub results: usize,
    /// Blobs.
    pub blobs: usize,
    /// Bytes of the blobs.
    pub bytes: u64,
}

/// What goes by some rules, and what that leaves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Garbage {
    /// What goes.
    pub goes: Tally,
    /// Bytes of half-finished downloads that go.
    pub partial_bytes: u64,
    /// What stays.
    pub stays: Tally,
    /// What of that is kept whatever the limits say.
    pub kept: Tally,
    /// By how much what stays is larger than allowed, because it is kept.
    pub over_bytes: u64,
    #[serde(skip)]
    results: Vec<PathBuf>,
    #[serde(skip)]
    blobs: Vec<PathBuf>,
    #[serde(skip)]
    partials: Vec<PathBuf>,
}

impl Garbage {
    /// All bytes that go.
    pub fn bytes(&self) -> u64 {
        self.goes.bytes + self.partial_bytes
    }
}

/// A cache that nobody else uses.
pub struct Alone {
    store: Disk,
}

/// All that a cache holds, by paths.
#[derive(Default)]
struct Census {
    results: Vec<Entry>,
    blobs: BTreeMap<PathBuf, u64>,
    partials: Vec<Partial>,
}

struct Entry {
    path: PathBuf,
    is_kept: bool,
    written: SystemTime,
    /// Where its outputs lie. None for a file that is no result; it goes like one.
    blobs: BTreeSet<PathBuf>,
}

struct Partial {
    path: PathBuf,
    written: SystemTime,
    bytes: u64,
}

impl Disk {
    /// What goes by `rules`. Removes nothing.
    pub fn garbage(&self, rules: &Rules) -> Result<Garbage> {
        Ok(decide(&self.census(&rules.kept)?, rules))
    }

    /// Has the cache alone from now on; a problem while others are at work in it, who may have
    /// found just what would go. Who comes meanwhile waits.
    pub fn alone(self) -> Result<Alone> {
        if self.usage.alone()? {
            return Ok(Alone { store: self });
        }
        let message = format!(
            "another kiln is at work in the cache {}: nothing was removed",
            self.root().display()
        );
        Err(Problem::new(Code::StoreInUse, message)
            .help("call it again when that has ended; --dry-run says what would go"))
    }

    fn census(&self, kept: &BTreeSet<ActionKey>) -> Result<Census> {
        let kept: BTreeSet<PathBuf> = kept.iter().map(|key| self.action_path(key)).collect();
        let mut census = Census::default();
        for path in Room::Blobs.files(self.root())? {
            // A damaged blob may be removed meanwhile.
            if let Ok(file) = fs::metadata(&path) {
                census.blobs.insert(path, file.len());
            }
        }
        for path in Room::Actions.files(self.root())? {
            let Some(written) = written(&path) else {
                continue;
            };
            let outputs = entry(&path)
                .map(|result| result.outputs)
                .unwrap_or_default();
            let blobs = outputs
                .values()
                .map(|part| self.blob_path(&part.content.blob()))
                .collect();
            census.results.push(Entry {
                is_kept: kept.contains(&path),
                written,
                blobs,
                path,
            });
        }
        for path in layout::partials(self.root())? {
            let files = files_below(&path)?;
            let bytes = files
                .iter()
                .filter_map(|file| Some(fs::metadata(file).ok()?.len()))
                .sum();
            // A file that is written to leaves its folder's time as it is.
            let newest = files
                .iter()
                .chain([&path])
                .filter_map(|path| written(path))
                .max();
            census.partials.extend(newest.map(|written| Partial {
                path,
                written,
                bytes,
            }));
        }
        Ok(census)
    }
}

impl Alone {
    /// The cache.
    pub fn store(&self) -> &Disk {
        &self.store
    }

    /// Removes what goes by `rules`.
    pub fn collect(&self, rules: &Rules) -> Result<Garbage> {
        let garbage = self.store.garbage(rules)?;
        // A result goes before its blobs: whoever dies in between leaves blobs without a name,
        // which go the next time.
        garbage
            .results
            .iter()
            .chain(&garbage.blobs)
            .try_for_each(|path| remove(path))?;
        for path in &garbage.partials {
            LockedFolder::take(path)?.map_or(Ok(()), LockedFolder::remove)?;
        }
        let spared = self
            .store
            .proofs_of(&Room::Actions.files(self.store.root())?);
        for path in Room::Notes.files(self.store.root())? {
            if !spared.contains(&path)
                && written(&path).is_some_and(|written| rules.makes_old(written))
            {
                remove(&path)?;
            }
        }
        Ok(garbage)
    }
}

impl Rules {
    /// Whether what was written then is old; without a limit all is.
    fn makes_old(&self, written: SystemTime) -> bool {
        let has_no_limit = self.max_age.is_none() && self.max_bytes.is_none();
        let age = self.now.duration_since(written).unwrap_or_default();
        has_no_limit || self.max_age.is_some_and(|max| age > max)
    }
}

fn decide(census: &Census, rules: &Rules) -> Garbage {
    let size = |blob: &PathBuf| census.blobs.get(blob).copied();

    let mut uses: BTreeMap<&PathBuf, usize> = BTreeMap::new();
    for blob in census.results.iter().flat_map(|result| &result.blobs) {
        *uses.entry(blob).or_default() += 1;
    }
    let mut garbage = Garbage::default();
    garbage.blobs.extend(
        census
            .blobs
            .keys()
            .filter(|blob| !uses.contains_key(blob))
            .cloned(),
    );
    let mut bytes: u64 = uses.keys().filter_map(|blob| size(blob)).sum();

    let (kept, mut others): (Vec<&Entry>, Vec<&Entry>) =
        census.results.iter().partition(|result| result.is_kept);
    others.sort_by_key(|result| (result.written, &result.path));
    for result in others {
        if !rules.makes_old(result.written) && rules.max_bytes.is_none_or(|max| bytes <= max) {
            break;
        }
        garbage.results.push(result.path.clone());
        for blob in &result.blobs {
            let Some(left) = uses.get_mut(blob) else {
                continue;
            };
            *left -= 1;
            if let (0, Some(size)) = (*left, size(blob)) {
                bytes -= size;
                garbage.blobs.push(blob.clone());
            }
        }
    }
    for partial in census
        .partials
        .iter()
        .filter(|partial| rules.makes_old(partial.written))
    {
        garbage.partials.push(partial.path.clone());
        garbage.partial_bytes += partial.bytes;
    }

    let stay = census.results.len() - garbage.results.len();
    let kept_blobs: BTreeSet<&PathBuf> = kept.iter().flat_map(|result| &result.blobs).collect();
    garbage.goes = tally(garbage.results.len(), garbage.blobs.iter().filter_map(size));
    garbage.stays = tally(
        stay,
        uses.iter()
            .filter(|(_, left)| **left > 0)
            .filter_map(|(blob, _)| size(blob)),
    );
    garbage.kept = tally(kept.len(), kept_blobs.into_iter().filter_map(size));
    garbage.over_bytes = rules.max_bytes.map_or(0, |max| bytes.saturating_sub(max));
    garbage
}

fn tally(results: usize, sizes: impl Iterator<Item = u64>) -> Tally {
    sizes.fold(
        Tally {
            results,
            ..Tally::default()
        },
        |tally, size| Tally {
            blobs: tally.blobs + 1,
            bytes: tally.bytes + size,
            ..tally
        },
    )
}

fn written(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(Code::StoreIo, || format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
