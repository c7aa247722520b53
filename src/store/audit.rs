//! Statistics of the whole cache, and the check of its integrity.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::disk::{Disk, read_result};
use super::layout::{self, CacheDir, files_below, remove_file};
use super::{ActionResult, BlobStore, LocalStore, Stamp, hash_file_parallel, local_run_note};
use crate::base::{Code, Digest, Result, open_file};

/// What a cache contains.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Number of blobs.
    pub blobs: usize,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Bytes of partial downloads, which can be resumed.
    pub partial_bytes: u64,
    /// By stage kind.
    pub stages: BTreeMap<String, StageStats>,
}

/// What a cache contains of one stage kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageStats {
    /// Number of results.
    pub actions: usize,
    /// Bytes of the blobs of its outputs, each counted once.
    pub output_bytes: u64,
    /// The largest memory peak of the actions that ran in a child process.
    pub peak_memory_bytes: Option<u64>,
}

/// The result of checking every byte of a cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verified {
    /// Blobs that were hashed.
    pub blobs: usize,
    /// Results that were read.
    pub actions: usize,
    /// What is damaged.
    pub faults: Vec<Fault>,
}

/// A damaged file of the cache. If it is removed, the action that made it runs again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

impl Verified {
    fn damaged_paths(&self) -> BTreeSet<PathBuf> {
        self.faults.iter().map(|fault| fault.path.clone()).collect()
    }
}

impl Disk {
    /// Counts the contents. Reads results, stats blobs.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        for folder in layout::partials(self.root())? {
            for file in files_below(&folder)? {
                stats.partial_bytes += size_of(&file);
            }
        }
        for path in CacheDir::Blobs.files(self.root())? {
            stats.blobs += 1;
            stats.blob_bytes += size_of(&path);
        }
        let mut blobs: BTreeMap<String, BTreeSet<Digest>> = BTreeMap::new();
        for path in CacheDir::Actions.files(self.root())? {
            let Some(result) = read_result(&path) else {
                continue;
            };
            let kind = stage_kind(&result);
            let stage = stats.stages.entry(kind.clone()).or_default();
            stage.actions += 1;
            stage.peak_memory_bytes = stage.peak_memory_bytes.max(result.peak_memory_bytes);
            blobs.entry(kind).or_default().extend(result.blobs());
        }
        for (kind, blobs) in blobs {
            stats.stages.entry(kind).or_default().output_bytes =
                blobs.iter().map(|blob| blob.size_bytes).sum();
        }
        Ok(stats)
    }

    /// Hashes every blob and reads every result. Removes nothing.
    pub fn verify(&self) -> Result<Verified> {
        let mut verified = Verified::default();
        for path in CacheDir::Blobs.files(self.root())? {
            verified.blobs += 1;
            let what = match self.hash_blob(&path) {
                Ok(found) if self.blob_path(&found) == path => continue,
                Ok(found) => format!("its bytes hash to {found}"),
                Err(error) => format!("cannot be read: {error}"),
            };
            verified.faults.push(Fault { path, what });
        }
        let damaged = verified.damaged_paths();
        for path in CacheDir::Actions.files(self.root())? {
            verified.actions += 1;
            let fault = match read_result(&path) {
                Some(result) => self.find_output_fault(&result, &damaged)?,
                None => Some("not a result that kiln wrote".into()),
            };
            if let Some(what) = fault {
                verified.faults.push(Fault { path, what });
            }
        }
        Ok(verified)
    }

    /// Removes the damaged files in `verified`, and the results that refer to a damaged blob.
    /// If a result is removed, notes are too: a note on a completed stage may repeat the result.
    pub fn repair(&self, verified: &Verified) -> Result<()> {
        let damaged = verified.damaged_paths();
        let mut bad_results = vec![];
        let mut good_results = vec![];
        for path in CacheDir::Actions.files(self.root())? {
            if damaged.contains(&path) || self.refers_to(&path, &damaged) {
                bad_results.push(path);
            } else {
                good_results.push(path);
            }
        }
        for path in bad_results.iter().chain(&damaged) {
            remove_file(path)?;
        }
        if bad_results.is_empty() {
            return Ok(());
        }
        let needed = self.local_run_notes(&good_results);
        for note in CacheDir::Notes.files(self.root())? {
            if !needed.contains(&note) {
                remove_file(&note)?;
            }
        }
        Ok(())
    }

    /// Whether the result at `path` has an output in one of the files `blobs`.
    fn refers_to(&self, path: &Path, blobs: &BTreeSet<PathBuf>) -> bool {
        let Some(result) = read_result(path) else {
            return false;
        };
        result
            .blobs()
            .any(|blob| blobs.contains(&self.blob_path(&blob)))
    }

    /// The notes that the actions of `results` (paths) ran for this cache. They are kept as long
    /// as the results.
    pub(super) fn local_run_notes(&self, results: &[PathBuf]) -> BTreeSet<PathBuf> {
        let mut notes = BTreeSet::new();
        for path in results {
            if let Some(stem) = path.file_stem()
                && let Some(key) = stem.to_str()
            {
                notes.insert(CacheDir::Notes.path(self.root(), &local_run_note(key).hex()));
            }
        }
        notes
    }

    /// The first problem with the blobs and windows of the outputs of `result`. Blobs that are
    /// `damaged` are not reported again.
    fn find_output_fault(
        &self,
        result: &ActionResult,
        damaged: &BTreeSet<PathBuf>,
    ) -> Result<Option<String>> {
        let mut blobs: BTreeSet<Digest> = result.blobs().collect();
        blobs.retain(|blob| !damaged.contains(&self.blob_path(blob)));
        let missing = self.missing(&Vec::from_iter(blobs))?;
        if let Some(blob) = missing.first() {
            return Ok(Some(match missing.len() {
                1 => format!("names the blob {blob}, which is not there"),
                many => format!("names {many} blobs that are not there, {blob} for one"),
            }));
        }
        for content in result.windows() {
            if !damaged.contains(&self.blob_path(&content.blob()))
                && let Err(problem) = self.content(content)
                && problem.code == Code::StoreWindow
            {
                return Ok(Some(problem.message));
            }
        }
        Ok(None)
    }

    /// The digest of the blob at `path`. An intact blob is not hashed again when its windows are
    /// checked.
    fn hash_blob(&self, path: &Path) -> io::Result<Digest> {
        let file = open_file(path)?;
        let stamp = Stamp::of(&file.metadata()?);
        let Some(found) = hash_file_parallel(&file, &AtomicBool::new(false))? else {
            return Err(ErrorKind::Interrupted.into());
        };
        if self.blob_path(&found) == path {
            self.mark_checked(&found, stamp);
        }
        Ok(found)
    }
}

/// The stage kind in the canonical text of an action.
fn stage_kind(result: &ActionResult) -> String {
    if let Ok(action) = serde_json::from_str::<serde_json::Value>(&result.action)
        && let Some(kind) = action["stage"].as_str()
    {
        return kind.into();
    }
    "unknown".into()
}

/// The size of a file; 0 if it was removed in the meantime.
fn size_of(path: &Path) -> u64 {
    match fs::metadata(path) {
        Ok(file) => file.len(),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::action::{Outputs, Part, PartName};
    use crate::base::CanonJson;
    use crate::store::ActionCache;

    #[test]
    fn results_without_their_blobs_are_reported_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Disk::open(folder.path()).unwrap();
        for (stage, blobs) in [
            ("fetch", &["clay"][..]),
            ("mix", &["clay", "sand", "glaze"]),
        ] {
            let mut outputs = Outputs::new();
            for blob in blobs {
                let mut sink = store.create().unwrap();
                sink.write_all(blob.as_bytes()).unwrap();
                let content = sink.finish().unwrap();
                let facts = CanonJson::default();
                outputs.insert(PartName::new(*blob).unwrap(), Part { content, facts });
            }
            let result = ActionResult {
                action: format!(r#"{{"stage":"{stage}"}}"#),
                outputs,
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
        // Results that refer to a damaged blob are removed with it.
        let clay = store.blob_path(&hash("clay"));
        remove_file(&clay).unwrap();
        fs::write(&clay, "clap").unwrap();
        assert_eq!(faults().len(), 2);
        store.repair(&store.verify().unwrap()).unwrap();
        let verified = store.verify().unwrap();
        assert_eq!((verified, store.stats().unwrap().blobs), Default::default());
    }
}
