//! Blobs, results of actions, and notes.
//!
//! The traits are small and extended by wrapping. `Ok(None)` means absent, `Err` means that the
//! lookup failed.

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
mod snapshot;
mod stamp;
mod usage;
mod window;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::action::{ActionKey, Blob, BlobSink, Content, Outputs};
use crate::base::{Digest, Result, hash_bytes};

pub use audit::{Fault, StageStats, Stats, Verified};
pub use blob_dirs::BlobList;
pub use bundle::{Exported, Imported};
pub use complete::{CompleteCache, Lookup};
pub use disk::Disk;
pub use folder::{ActionLock, LockedFolder};
pub use gc::{ExclusiveDisk, Garbage, Rules, Totals};
pub use memory::Memory;
pub use notes::{Note, Notes, local_run_note};
pub use publish::{Links, RECORD, Space, publish};
pub use sha256::Sha256;
pub use snapshot::{InputSnapshot, hash_file_parallel};
pub use stamp::Stamp;

/// Immutable bytes by digest.
pub trait BlobStore: Send + Sync {
    /// Those of `digests` that the store does not have.
    fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>>;

    /// Whether the store has all blobs of a list. A backend may answer without looking for each.
    fn has_all(&self, list: &BlobList) -> Result<bool> {
        Ok(self.missing(&list.digests()?)?.is_empty())
    }

    /// The bytes of a blob.
    fn open(&self, digest: &Digest) -> Result<Option<Blob>>;

    /// The bytes of a content: a blob or a window into one. A window is hashed first, since the
    /// result that names it may be wrong.
    fn content(&self, content: &Content) -> Result<Option<Blob>> {
        let Some(blob) = self.open(&content.blob())? else {
            return Ok(None);
        };
        let bytes = window::cut(&blob, content)?;
        window::check(&bytes, content)?;
        Ok(Some(bytes))
    }

    /// A read-only file with the bytes of a blob, for libraries that need a path and for links.
    fn path(&self, digest: &Digest) -> Result<Option<PathBuf>>;

    /// A new blob to write.
    fn create(&self) -> Result<Box<dyn BlobSink>>;
}

/// A blob store in a folder of this machine, which also has folders for temporary work.
pub trait LocalStore: BlobStore {
    /// Its folder, absolute.
    fn root(&self) -> &Path;

    /// A new folder that is removed when dropped, or by a later process if this one dies.
    fn scratch(&self) -> Result<TempDir>;

    /// The folder of partial work on `subject`, kept until it is removed; `None` while another
    /// process has locked it.
    fn partial(&self, subject: &Digest) -> Result<Option<LockedFolder>>;
}

/// The results of actions, by key.
pub trait ActionCache: Send + Sync {
    /// The result of an action, if it ever succeeded.
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>>;

    /// Stores the result of a successful action. Failures are never stored.
    fn put(&self, result: &ActionResult) -> Result<()>;

    /// Locks an action, to run it; `None` while another process has the lock, which may be about
    /// to put the result.
    fn lock(&self, _key: &ActionKey) -> Result<Option<ActionLock>> {
        Ok(Some(ActionLock::default()))
    }
}

/// The result of a successful action, with measured time and memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionResult {
    /// The canonical text of the action: the audit trail, and what `explain` compares. Not
    /// serialized: the disk format has it on a line of its own.
    #[serde(skip)]
    pub action: String,
    /// The outputs.
    pub outputs: Outputs,
    /// Wall time, in milliseconds.
    pub took_ms: u64,
    /// Measured peak of resident memory, in bytes, if it ran in a child process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

impl ActionResult {
    /// The key of its action.
    pub fn key(&self) -> ActionKey {
        ActionKey(hash_bytes(self.action.as_bytes()))
    }

    /// The blobs that contain its outputs; may repeat.
    pub fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.outputs.values().map(|part| part.content.blob())
    }

    /// The outputs that are windows into larger blobs.
    fn windows(&self) -> impl Iterator<Item = &Content> {
        let contents = self.outputs.values().map(|part| &part.content);
        contents.filter(|content| content.window.is_some())
    }
}
