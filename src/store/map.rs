//! The one place that maps files into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Range;

use memmap2::{Mmap, UncheckedAdvice};

use crate::action::{Blob, BlobMemory};

/// Reading a file is faster than mapping it, up to about this size.
const MIN_MAPPED_BYTES: u64 = 1 << 16;

/// The bytes of a blob's file.
pub(super) fn map(mut file: &File) -> io::Result<Blob> {
    if file.metadata()?.len() < MIN_MAPPED_BYTES {
        let mut bytes = vec![];
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        return Ok(Blob::new(bytes));
    }
    // SAFETY: a mapping is sound while the file is neither changed nor truncated. The store writes
    // a blob under another name, makes it read-only and renames it into place; after that it is
    // only unlinked or replaced by a rename, which does not change the mapped inode.
    let mapped = unsafe { Mmap::map(file)? };
    Ok(Blob::from_memory(Mapped(mapped)))
}

struct Mapped(Mmap);

impl BlobMemory for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn evict(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        // SAFETY: the mapping is shared, read-only and of a file: an evicted page is read again
        // from the file, with the same bytes, since the file does not change (see `map`).
        let advised = unsafe {
            self.0
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // Only advice: if it fails, more stays in memory.
        let _ = advised;
    }
}
