//! The workspace of one attempt to run an action, in the cache folder.

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

/// Bytes of a window that are copied at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The workspace of an action. Its [`Job`](crate::action::Job) limits what it can read to its
/// declared inputs.
pub(super) struct LocalWorkspace<'a> {
    store: &'a dyn LocalStore,
    watch: &'a dyn Watch,
    /// Created on first use, since most actions need none.
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

    /// Removes the folders of partial work, after a successful attempt.
    pub(super) fn remove_partials(self) -> Result<()> {
        let partials = self
            .partials
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        for folder in partials.into_values() {
            folder.remove()?;
        }
        Ok(())
    }
}

impl Workspace for LocalWorkspace<'_> {
    fn open(&self, content: &Content) -> Result<Blob> {
        match self.store.content(content)? {
            Some(bytes) => Ok(bytes),
            None => Err(gone(&content.blob())),
        }
    }

    fn path(&self, content: &Content) -> Result<PathBuf> {
        if content.window.is_none() {
            return match self.store.path(&content.digest)? {
                Some(path) => Ok(path),
                None => Err(gone(&content.digest)),
            };
        }
        let path = self.scratch()?.join(content.digest.hex());
        if !path.exists() {
            // Written under another name first: two threads may need the same window.
            let failed = || format!("write {}", path.display());
            let bytes = self.open(content)?;
            let mut file = NamedTempFile::new_in(self.scratch()?)
                .context(Code::Io, || "copy a window".into())?;
            bytes
                .stream(CHUNK_BYTES, |chunk| file.write_all(chunk))
                .context(Code::Io, failed)?;
            file.persist(&path).context(Code::Io, failed)?;
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
        // If another thread was faster, its folder is used, and this one is removed.
        let created = self.store.scratch()?;
        Ok(self.scratch.get_or_init(|| created).path())
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
