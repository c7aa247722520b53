//! Blobs and results in memory, for tests.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::{ActionCache, ActionResult, BlobStore, Note, Notes};
use crate::action::{ActionKey, Blob, BlobSink, Content};
use crate::base::{Code, Context, Digest, Result, hash_bytes};

/// A store in memory. Clones share their contents.
#[derive(Clone, Default)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    blobs: HashMap<Digest, Blob>,
    actions: HashMap<ActionKey, ActionResult>,
    notes: HashMap<Digest, String>,
    /// Blobs that were requested as files.
    files: Option<TempDir>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlobStore for Memory {
    fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let inner = self.lock();
        let mut missing = digests.to_vec();
        missing.retain(|digest| !inner.blobs.contains_key(digest));
        Ok(missing)
    }

    fn open(&self, digest: &Digest) -> Result<Option<Blob>> {
        Ok(self.lock().blobs.get(digest).cloned())
    }

    fn path(&self, digest: &Digest) -> Result<Option<PathBuf>> {
        let failed = || format!("write the blob {digest}");
        let mut inner = self.lock();
        let Some(blob) = inner.blobs.get(digest).cloned() else {
            return Ok(None);
        };
        let folder = match &mut inner.files {
            Some(folder) => folder,
            none => none.insert(TempDir::new().context(Code::StoreIo, failed)?),
        };
        let path = folder.path().join(digest.hex());
        std::fs::write(&path, &*blob).context(Code::StoreIo, failed)?;
        Ok(Some(path))
    }

    fn create(&self) -> Result<Box<dyn BlobSink>> {
        Ok(Box::new(Sink {
            store: self.clone(),
            bytes: vec![],
        }))
    }
}

impl ActionCache for Memory {
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>> {
        Ok(self.lock().actions.get(key).cloned())
    }

    fn put(&self, result: &ActionResult) -> Result<()> {
        self.lock().actions.insert(result.key(), result.clone());
        Ok(())
    }
}

impl Notes for Memory {
    fn read(&self, key: &Digest) -> Result<Option<Note>> {
        let text = self.lock().notes.get(key).cloned();
        Ok(text.map(Note::new))
    }

    fn write(&self, key: &Digest, text: &str) -> Result<()> {
        self.lock().notes.insert(*key, text.into());
        Ok(())
    }
}

struct Sink {
    store: Memory,
    bytes: Vec<u8>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobSink for Sink {
    fn finish(self: Box<Self>) -> Result<Content> {
        let digest = hash_bytes(&self.bytes);
        self.store
            .lock()
            .blobs
            .insert(digest, Blob::new(self.bytes));
        Ok(digest.into())
    }
}
