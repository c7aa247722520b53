//! What a file's metadata say of its content.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// A file whose stamp is unchanged was neither written to nor replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    size_bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Catches who sets `modified` back.
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

    /// Without the time of the last change, which every further link to the file sets.
    pub(super) fn of_a_link(self) -> Self {
        Stamp {
            changed: (0, 0),
            ..self
        }
    }

    pub(super) fn is_of_size(&self, size_bytes: u64) -> bool {
        self.size_bytes == size_bytes
    }
}
