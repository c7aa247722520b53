//! Garbage collection: takes an inventory of the cache, decides what to remove, then removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::LocalStore;
use super::disk::{Disk, read_result};
use super::folder::LockedFolder;
use super::layout::{self, CacheDir, files_below, remove_file};
use crate::action::ActionKey;
use crate::base::{Code, Problem, Result};

/// What stays, and how much may stay. Without a limit, only what is kept stays.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Results that stay regardless of the limits, together with the blobs of their outputs.
    pub kept: BTreeSet<ActionKey>,
    /// Other results, notes and partial downloads that are older than this are removed.
    pub max_age: Option<Duration>,
    /// Other results are removed, the oldest first, until all blobs together have at most this
    /// many bytes.
    pub max_bytes: Option<u64>,
    /// The time that ages are relative to.
    pub now: SystemTime,
}

/// A number of results and blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Results.
    pub results: usize,
    /// Blobs.
    pub blobs: usize,
    /// Bytes of the blobs.
    pub bytes: u64,
}

/// What some rules remove, and what stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Garbage {
    /// What is removed.
    pub goes: Totals,
    /// Bytes of partial downloads that are removed.
    pub partial_bytes: u64,
    /// What stays.
    pub stays: Totals,
    /// The part of it that is kept regardless of the limits.
    pub kept: Totals,
    /// How far what stays exceeds `max_bytes`, because it is kept.
    pub over_bytes: u64,
    #[serde(skip)]
    results: Vec<PathBuf>,
    #[serde(skip)]
    blobs: Vec<PathBuf>,
    #[serde(skip)]
    partials: Vec<PathBuf>,
}

impl Garbage {
    /// All bytes that are removed.
    pub fn bytes(&self) -> u64 {
        self.goes.bytes + self.partial_bytes
    }
}

/// A cache that no other process uses.
pub struct ExclusiveDisk {
    store: Disk,
}

/// The contents of a cache, by path.
#[derive(Default)]
struct Inventory {
    results: Vec<ResultFile>,
    /// Blobs and their sizes.
    blobs: BTreeMap<PathBuf, u64>,
    partials: Vec<Partial>,
}

struct ResultFile {
    path: PathBuf,
    is_kept: bool,
    written: SystemTime,
    /// The blobs of its outputs. Empty for a file that is not a valid result.
    blobs: BTreeSet<PathBuf>,
}

struct Partial {
    path: PathBuf,
    written: SystemTime,
    bytes: u64,
}

impl Disk {
    /// What `rules` would remove. Removes nothing.
    pub fn garbage(&self, rules: &Rules) -> Result<Garbage> {
        Ok(decide(&self.inventory(&rules.kept)?, rules))
    }

    /// Locks the cache exclusively. Fails if other processes use it: they may have found just what
    /// would be removed. Processes that open it later wait.
    pub fn lock_exclusively(self) -> Result<ExclusiveDisk> {
        if self.usage.try_upgrade()? {
            return Ok(ExclusiveDisk { store: self });
        }
        let message = format!(
            "another kiln is at work in the cache {}: nothing was removed",
            self.root().display()
        );
        Err(Problem::new(Code::StoreInUse, message)
            .help("call it again when that has ended; --dry-run says what would go"))
    }

    fn inventory(&self, kept: &BTreeSet<ActionKey>) -> Result<Inventory> {
        let kept: BTreeSet<PathBuf> = kept.iter().map(|key| self.action_path(key)).collect();
        let mut inventory = Inventory::default();
        for path in CacheDir::Blobs.files(self.root())? {
            // A reader removes a corrupt blob, possibly right now.
            if let Ok(file) = fs::metadata(&path) {
                inventory.blobs.insert(path, file.len());
            }
        }
        for path in CacheDir::Actions.files(self.root())? {
            let Some(written) = modified(&path) else {
                continue;
            };
            let mut blobs = BTreeSet::new();
            if let Some(result) = read_result(&path) {
                for blob in result.blobs() {
                    blobs.insert(self.blob_path(&blob));
                }
            }
            inventory.results.push(ResultFile {
                is_kept: kept.contains(&path),
                written,
                blobs,
                path,
            });
        }
        for path in layout::partials(self.root())? {
            // Writing to a file does not change the time of its folder.
            let mut newest = modified(&path);
            let mut bytes = 0;
            for file in files_below(&path)? {
                newest = newest.max(modified(&file));
                if let Ok(metadata) = fs::metadata(&file) {
                    bytes += metadata.len();
                }
            }
            if let Some(written) = newest {
                inventory.partials.push(Partial {
                    path,
                    written,
                    bytes,
                });
            }
        }
        Ok(inventory)
    }
}

impl ExclusiveDisk {
    /// The cache.
    pub fn store(&self) -> &Disk {
        &self.store
    }

    /// Removes what `rules` do not keep.
    pub fn collect(&self, rules: &Rules) -> Result<Garbage> {
        let root = self.store.root();
        let garbage = self.store.garbage(rules)?;
        // Results before their blobs: an interruption leaves blobs without a result, which the next
        // collection removes.
        for path in &garbage.results {
            remove_file(path)?;
        }
        for path in &garbage.blobs {
            remove_file(path)?;
        }
        for path in &garbage.partials {
            if let Some(folder) = LockedFolder::try_lock(path)? {
                folder.remove()?;
            }
        }
        let needed = self.store.local_run_notes(&CacheDir::Actions.files(root)?);
        for path in CacheDir::Notes.files(root)? {
            if needed.contains(&path) {
                continue;
            }
            if let Some(written) = modified(&path)
                && rules.is_expired(written)
            {
                remove_file(&path)?;
            }
        }
        Ok(garbage)
    }
}

impl Rules {
    /// Whether something written at `written` is too old; without a limit, everything is.
    fn is_expired(&self, written: SystemTime) -> bool {
        match (self.max_age, self.max_bytes) {
            (Some(max_age), _) => self.now.duration_since(written).unwrap_or_default() > max_age,
            (None, Some(_)) => false,
            (None, None) => true,
        }
    }
}

fn decide(inventory: &Inventory, rules: &Rules) -> Garbage {
    // How many of the results that stay use each blob.
    let mut uses: BTreeMap<&PathBuf, usize> = BTreeMap::new();
    let mut kept = Totals::default();
    let mut kept_blobs: BTreeSet<&PathBuf> = BTreeSet::new();
    let mut others = vec![];
    for result in &inventory.results {
        for blob in &result.blobs {
            *uses.entry(blob).or_default() += 1;
        }
        if result.is_kept {
            kept.results += 1;
            kept_blobs.extend(&result.blobs);
        } else {
            others.push(result);
        }
    }
    for blob in kept_blobs {
        kept.add_blob(inventory.blobs.get(blob));
    }

    let mut goes = Totals::default();
    let mut stays = Totals {
        results: inventory.results.len(),
        ..Totals::default()
    };
    let mut garbage = Garbage::default();
    for (blob, size) in &inventory.blobs {
        if uses.contains_key(blob) {
            stays.add_blob(Some(size));
        } else {
            goes.add_blob(Some(size));
            garbage.blobs.push(blob.clone());
        }
    }

    others.sort_by_key(|result| (result.written, &result.path));
    for result in others {
        let fits = match rules.max_bytes {
            Some(max) => stays.bytes <= max,
            None => true,
        };
        if fits && !rules.is_expired(result.written) {
            break;
        }
        goes.results += 1;
        stays.results -= 1;
        garbage.results.push(result.path.clone());
        for blob in &result.blobs {
            let Some(count) = uses.get_mut(blob) else {
                continue;
            };
            *count -= 1;
            if *count == 0
                && let Some(size) = inventory.blobs.get(blob)
            {
                goes.add_blob(Some(size));
                stays.blobs -= 1;
                stays.bytes -= size;
                garbage.blobs.push(blob.clone());
            }
        }
    }
    for partial in &inventory.partials {
        if rules.is_expired(partial.written) {
            garbage.partials.push(partial.path.clone());
            garbage.partial_bytes += partial.bytes;
        }
    }

    if let Some(max) = rules.max_bytes {
        garbage.over_bytes = stays.bytes.saturating_sub(max);
    }
    Garbage {
        goes,
        stays,
        kept,
        ..garbage
    }
}

impl Totals {
    /// Counts a blob of this size; one that is missing does not count.
    fn add_blob(&mut self, size: Option<&u64>) {
        if let Some(size) = size {
            self.blobs += 1;
            self.bytes += size;
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}
