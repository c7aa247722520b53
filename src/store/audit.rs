//! Looking over the whole cache: what it holds, and whether it is still what it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::disk::{Disk, MAX_TEXT_BYTES, read_entry};
use super::gc::remove;
use super::layout::{self, Room};
use super::{ActionResult, BlobStore, LocalStore, Stamp, hash_ahead, ran_here};
use crate::base::{Code, Context, Digest, Result, open_file, read_file};

/// What a cache holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Number of blobs.
    pub blobs: usize,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Bytes of half-finished work: downloads that can be resumed.
    pub partial_bytes: u64,
    /// By stage kind.
    pub stages: BTreeMap<String, StageStats>,
}

/// What a cache holds of one stage kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageStats {
    /// Number of results.
    pub actions: usize,
    /// Bytes of the blobs that its outputs lie in, each counted once.
    pub output_bytes: u64,
    /// The largest peak of memory of those that ran in a process of their own.
    pub peak_memory_bytes: Option<u64>,
}

/// What a look at every byte of a cache came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verified {
    /// Blobs that were hashed.
    pub blobs: usize,
    /// Results that were read.
    pub actions: usize,
    /// What is not as it should be.
    pub faults: Vec<Fault>,
}

/// A file of the cache that is not what its name says. Removing it costs no more than running again
/// what made it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl Disk {
    /// Counts what is there. Reads results, stats blobs.
    pub fn stats(&self) -> Result<Stats> {
        let sizes: Result<Vec<u64>> = layout::partials(self.root())?
            .iter()
            .map(|folder| size_below(folder))
            .collect();
        let mut stats = Stats {
            partial_bytes: sizes?.iter().sum(),
            ..Stats::default()
        };
        for path in Room::Blobs.files(self.root())? {
            stats.blobs += 1;
            // A blob may be removed meanwhile.
            stats.blob_bytes += fs::metadata(&path).map_or(0, |file| file.len());
        }
        let mut blobs: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
        for path in Room::Actions.files(self.root())? {
            let Some(result) = entry(&path) else { continue };
            let stage = stage_of(&result);
            let of_stage = stats.stages.entry(stage.clone()).or_default();
            of_stage.actions += 1;
            of_stage.peak_memory_bytes = of_stage.peak_memory_bytes.max(result.peak_memory_bytes);
            blobs.entry(stage).or_default().extend(blobs_of(&result));
        }
        for (stage, blobs) in blobs {
            stats.stages.entry(stage).or_default().output_bytes =
                blobs.iter().map(|blob| blob.size_bytes).sum();
        }
        Ok(stats)
    }

    /// Hashes every blob and reads every result. Removes nothing.
    pub fn verify(&self) -> Result<Verified> {
        let mut verified = Verified::default();
        for path in Room::Blobs.files(self.root())? {
            verified.blobs += 1;
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let what = match self.hash_blob(&path) {
                Ok(found) if found.hex() == name => continue,
                Ok(found) => format!("its bytes hash to {found}"),
                Err(error) => format!("cannot be read: {error}"),
            };
            verified.faults.push(Fault { path, what });
        }
        let damaged: BTreeSet<PathBuf> = verified
            .faults
            .iter()
            .map(|fault| fault.path.clone())
            .collect();
        for path in Room::Actions.files(self.root())? {
            verified.actions += 1;
            let fault = match entry(&path) {
                Some(result) => self.wrong_output(&result, &damaged)?,
                None => Some("not a result that kiln wrote".into()),
            };
            verified
                .faults
                .extend(fault.map(|what| Fault { path, what }));
        }
        Ok(verified)
    }

    /// Removes what `verified` found damaged, and the results that name a blob of it. With a
    /// result, notes go: one on a complete stage may say what the result said.
    pub fn repair(&self, verified: &Verified) -> Result<()> {
        let damaged: BTreeSet<PathBuf> = verified
            .faults
            .iter()
            .map(|fault| fault.path.clone())
            .collect();
        let is_of_damaged = |path: &PathBuf| {
            damaged.contains(path)
                || entry(path).is_some_and(|result| {
                    blobs_of(&result).any(|blob| damaged.contains(&self.blob_path(&blob)))
                })
        };
        let (gone, whole): (Vec<PathBuf>, Vec<PathBuf>) = Room::Actions
            .files(self.root())?
            .into_iter()
            .partition(is_of_damaged);
        let notes = if gone.is_empty() {
            vec![]
        } else {
            Room::Notes.files(self.root())?
        };
        let spared = self.proofs_of(&whole);
        let notes = notes.iter().filter(|note| !spared.contains(*note));
        gone.iter()
            .chain(&damaged)
            .chain(notes)
            .try_for_each(|path| remove(path))
    }

    /// The notes that say that `results`, by their paths, came about here; they last as long as
    /// those.
    pub(super) fn proofs_of(&self, results: &[PathBuf]) -> BTreeSet<PathBuf> {
        let keys = results.iter().filter_map(|path| path.file_stem()?.to_str());
        keys.map(|key| Room::Notes.path(self.root(), &ran_here(key).hex()))
            .collect()
    }

    /// What is wrong with the first output of `result` that is not where it should be. Blobs that
    /// are `damaged` have been named already.
    fn wrong_output(
        &self,
        result: &ActionResult,
        damaged: &BTreeSet<PathBuf>,
    ) -> Result<Option<String>> {
        let is_readable = |blob: &Digest| !damaged.contains(&self.blob_path(blob));
        let blobs: BTreeSet<Digest> = blobs_of(result).filter(is_readable).collect();
        let missing = self.missing(&blobs.into_iter().collect::<Vec<_>>())?;
        if let Some(blob) = missing.first() {
            return Ok(Some(match missing.len() {
                1 => format!("names the blob {blob}, which is not there"),
                many => format!("names {many} blobs that are not there, {blob} for one"),
            }));
        }
        for content in result.windows() {
            if is_readable(&content.blob())
                && let Err(problem) = self.content(content)
                && problem.code == Code::StoreWindow
            {
                return Ok(Some(problem.message));
            }
        }
        Ok(None)
    }

    /// The digest of the blob at `path`. One that is what its name says is not hashed again for
    /// what lies in it.
    fn hash_blob(&self, path: &Path) -> io::Result<Digest> {
        let file = open_file(path)?;
        let stamp = Stamp::of(&file.metadata()?);
        let found = hash_ahead(&file, &AtomicBool::new(false))?;
        // Nobody calls it off.
        let found = found.ok_or(ErrorKind::Interrupted)?;
        if self.blob_path(&found) == path {
            self.mark_checked(&found, stamp);
        }
        Ok(found)
    }
}

/// The blobs that the outputs of `result` lie in; some more than once.
fn blobs_of(result: &ActionResult) -> impl Iterator<Item = Digest> {
    result.outputs.values().map(|part| part.content.blob())
}

pub(super) fn entry(path: &Path) -> Option<ActionResult> {
    read_entry(
        read_file(path, MAX_TEXT_BYTES).ok()?,
        path.file_stem()?.to_str()?,
    )
}

/// The stage kind in the canonical text of an action.
fn stage_of(result: &ActionResult) -> String {
    let action: Option<serde_json::Value> = serde_json::from_str(&result.action).ok();
    action
        .and_then(|action| Some(action.get("stage")?.as_str()?.to_owned()))
        .unwrap_or("unknown".into())
}

/// All files below `folder`, sorted.
pub(super) fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            // Removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.context(Code::StoreIo, || format!("list {}", folder.display()))?,
        };
        for entry in entries {
            let entry = entry.context(Code::StoreIo, || format!("list {}", folder.display()))?;
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder { &mut folders } else { &mut files }.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn size_below(folder: &Path) -> Result<u64> {
    Ok(files_below(folder)?
        .iter()
        .filter_map(|path| Some(fs::metadata(path).ok()?.len()))
        .sum())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::action::{Part, PartName};
    use crate::base::CanonJson;
    use crate::store::ActionCache;

    #[test]
    fn a_result_whose_blob_is_gone_is_named_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = Disk::open(folder.path()).unwrap();
        for (stage, blobs) in [
            ("fetch", &["clay"][..]),
            ("mix", &["clay", "sand", "glaze"]),
        ] {
            let part = |blob: &&str| {
                let mut sink = store.create().unwrap();
                sink.write_all(blob.as_bytes()).unwrap();
                let content = sink.finish().unwrap();
                let facts = CanonJson::default();
                (PartName::new(*blob).unwrap(), Part { content, facts })
            };
            let result = ActionResult {
                action: format!(r#"{{"stage":"{stage}"}}"#),
                outputs: blobs.iter().map(part).collect(),
                took_ms: 1,
                peak_memory_bytes: None,
            };
            store.put(&result).unwrap();
        }
        let hash = |text: &str| crate::base::hash_bytes(text.as_bytes());
        let faults = || -> Vec<String> {
            let faults = store.verify().unwrap().faults;
            faults.into_iter().map(|fault| fault.what).collect()
        };
        assert_eq!(faults(), [""; 0]);
        fs::remove_file(store.blob_path(&hash("sand"))).unwrap();
        let gone = format!("names the blob {}, which is not there", hash("sand"));
        assert_eq!(faults(), [gone]);
        fs::remove_file(store.blob_path(&hash("glaze"))).unwrap();
        let found = faults();
        assert!(
            found[0].starts_with("names 2 blobs that are not there"),
            "{found:?}"
        );
        // What a damaged blob is named by goes with it.
        let clay = store.blob_path(&hash("clay"));
        remove(&clay).unwrap();
        fs::write(&clay, "clap").unwrap();
        assert_eq!(faults().len(), 2);
        store.repair(&store.verify().unwrap()).unwrap();
        let verified = store.verify().unwrap();
        assert_eq!((verified, store.stats().unwrap().blobs), Default::default());
    }
}
