//! File metadata that show whether a file changed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// Inode, size and times of a file. While they are the same, the file was neither written to nor
/// replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    size_bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Changes even if `modified` is set back.
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp in a file's metadata.
    pub fn of(file: &Metadata) -> Self {
        Stamp {
            inode: file.ino(),
            size_bytes: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }

    /// The stamp without the change time, which each new hard link to the file updates.
    pub(super) fn without_change_time(self) -> Self {
        Stamp {
            changed: (0, 0),
            ..self
        }
    }

    pub(super) fn has_size(&self, size_bytes: u64) -> bool {
        self.size_bytes == size_bytes
    }
}
