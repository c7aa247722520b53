//! The workspace of one attempt, over the cache folder.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use tempfile::{NamedTempFile, TempDir};

use super::Watch;
use crate::action::{Blob, BlobSink, Content, Workspace};
use crate::base::{Code, Context, Digest, Problem, Result};
use crate::store::{LocalStore, LockedFolder};

/// As much of a window is copied at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Where an action works. What it may read is limited by its [`Job`](crate::action::Job), which
/// knows declared inputs only.
pub(super) struct LocalWorkspace<'a> {
    store: &'a dyn LocalStore,
    watch: &'a dyn Watch,
    /// Made when first asked for: most actions need none.
    scratch: OnceLock<TempDir>,
    partials: Mutex<HashMap<Digest, LockedFolder>>,
}

impl<'a> LocalWorkspace<'a> {
    pub(super) fn new(store: &'a dyn LocalStore, watch: &'a dyn Watch) -> Self {
        LocalWorkspace {
            store,
            watch,
            scratch: OnceLock::new(),
            partials: Mutex::default(),
        }
    }

    /// Ends a successful attempt: nothing is half-finished any more.
    pub(super) fn clear(self) -> Result<()> {
        let partials = self
            .partials
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        partials.into_values().try_for_each(LockedFolder::remove)
    }
}

impl Workspace for LocalWorkspace<'_> {
    fn open(&self, content: &Content) -> Result<Blob> {
        self.store
            .content(content)?
            .ok_or_else(|| gone(&content.blob()))
    }

    fn path(&self, content: &Content) -> Result<PathBuf> {
        if content.window.is_none() {
            return self
                .store
                .path(&content.digest)?
                .ok_or_else(|| gone(&content.digest));
        }
        let path = self.scratch()?.join(content.digest.hex());
        if !path.exists() {
            // By way of another name: two threads may want the same window.
            let bytes = self.open(content)?;
            let mut file = NamedTempFile::new_in(self.scratch()?)
                .context(Code::Io, || "copy a window".into())?;
            bytes
                .stream(PIECE_BYTES, |piece| file.write_all(piece))
                .context(Code::Io, || format!("write {}", path.display()))?;
            file.persist(&path)
                .context(Code::Io, || format!("write {}", path.display()))?;
        }
        Ok(path)
    }

    fn create(&self) -> Result<Box<dyn BlobSink>> {
        self.store.create()
    }

    fn scratch(&self) -> Result<&Path> {
        if let Some(scratch) = self.scratch.get() {
            return Ok(scratch.path());
        }
        // Of two that come at once, one is dropped.
        let made = self.store.scratch()?;
        Ok(self.scratch.get_or_init(|| made).path())
    }

    fn partial(&self, subject: &Digest) -> Result<PathBuf> {
        let mut partials = self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = partials.get(subject) {
            return Ok(folder.path().into());
        }
        loop {
            if let Some(folder) = self.store.partial(subject)? {
                let path = folder.path().to_owned();
                partials.insert(*subject, folder);
                return Ok(path);
            }
            if self.cancelled() {
                return Err(Problem::cancelled());
            }
            sleep(Duration::from_millis(50));
        }
    }

    fn progress(&self, done: u64, total: u64, unit: &str) {
        self.watch.progress(done, total, unit);
    }

    fn cancelled(&self) -> bool {
        self.watch.cancelled()
    }
}

fn gone(blob: &Digest) -> Problem {
    Problem::new(
        Code::StoreGone,
        format!("the blob {blob} is gone from the cache"),
    )
    .help("something removed it during the build; run the same command again")
}
