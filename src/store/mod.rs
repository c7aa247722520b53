//! Floor 3: blobs and results, by digest.
//!
//! Two small traits, grown by being wrapped. Absent is `Ok(None)`; `Err` means "could not look".

mod audit;
mod blob_dirs;
mod bundle;
mod complete;
mod disk;
mod folder;
mod gc;
mod layout;
mod map;
mod memory;
mod notes;
mod publish;
mod sha256;
mod stamp;
mod usage;
mod watched;
mod window;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::action::{ActionKey, Blob, BlobSink, Content, Outputs};
use crate::base::{Digest, Result, hash_bytes};

pub use audit::{Fault, StageStats, Stats, Verified};
pub use blob_dirs::BlobList;
pub use bundle::{Exported, Imported};
pub use complete::{Complete, Found};
pub use disk::Disk;
pub use folder::{ActionLock, LockedFolder};
pub use gc::{Alone, Garbage, Rules, Tally};
pub use memory::Memory;
pub use notes::{Note, Notes, ran_here};
pub use publish::{Links, RECORD, Space, publish};
pub use sha256::Sha256;
pub use stamp::Stamp;
pub use watched::{Watched, hash_ahead};

/// Immutable bytes by digest.
pub trait BlobStore: Send + Sync {
    /// Which of `digests` are not there.
    fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>>;

    /// Whether all blobs of a list are there; what knows them as a whole need not look for each.
    fn has_all(&self, list: &BlobList) -> Result<bool> {
        Ok(self.missing(&list.digests()?)?.is_empty())
    }

    /// The bytes of a blob.
    fn open(&self, digest: &Digest) -> Result<Option<Blob>>;

    /// The bytes of a content, be it a blob or a window into one. What a result says of a window is
    /// checked first.
    fn content(&self, content: &Content) -> Result<Option<Blob>> {
        window::checked(self, content)
    }

    /// A read-only file that holds the blob, for libraries that want a path and for linking out.
    fn path(&self, digest: &Digest) -> Result<Option<PathBuf>>;

    /// A new blob to write.
    fn create(&self) -> Result<Box<dyn BlobSink>>;
}

/// A blob store in a folder of this machine, with folders to work in beside its blobs.
pub trait LocalStore: BlobStore {
    /// Its folder, absolute.
    fn root(&self) -> &Path;

    /// A new folder that is removed when dropped, or by the next process if this one dies.
    fn scratch(&self) -> Result<TempDir>;

    /// The folder of half-finished work on `subject`, kept until removed; `None` while another
    /// process has it.
    fn partial(&self, subject: &Digest) -> Result<Option<LockedFolder>>;
}

/// What an action gave, by its key.
pub trait ActionCache: Send + Sync {
    /// The result of an action, if it ever succeeded.
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>>;

    /// Remembers a success, by the key of its action. Failures are never put.
    fn put(&self, result: &ActionResult) -> Result<()>;

    /// The turn to run an action; `None` while another process has it, which may be about to put
    /// the result.
    fn turn(&self, _key: &ActionKey) -> Result<Option<ActionLock>> {
        Ok(Some(ActionLock::default()))
    }
}

/// A success, and what it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionResult {
    /// The canonical text of the action: the audit trail, and what `explain` compares. Not spelled
    /// with the rest: the disk has it beside it as it is.
    #[serde(skip)]
    pub action: String,
    /// What it gave.
    pub outputs: Outputs,
    /// Wall time, in milliseconds.
    pub took_ms: u64,
    /// Measured peak of resident memory, in bytes, where it ran in a process of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

impl ActionResult {
    /// The key of its action.
    pub fn key(&self) -> ActionKey {
        ActionKey(hash_bytes(self.action.as_bytes()))
    }

    /// What of its outputs lies inside of larger blobs.
    fn windows(&self) -> impl Iterator<Item = &Content> {
        self.outputs
            .values()
            .map(|part| &part.content)
            .filter(|content| content.window.is_some())
    }
}
