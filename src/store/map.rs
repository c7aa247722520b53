//! The one place that maps files into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek};
use std::ops::Range;

use memmap2::{Mmap, UncheckedAdvice};

use crate::action::{Blob, Memory};

/// To map a file costs more than to read it, up to about this size.
const WORTH_MAPPING_BYTES: u64 = 1 << 16;

/// The bytes of a blob's file.
pub(super) fn map(mut file: &File) -> io::Result<Blob> {
    if file.metadata()?.len() < WORTH_MAPPING_BYTES {
        let mut bytes = vec![];
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        return Ok(Blob::new(bytes));
    }
    // SAFETY: a mapping is sound while nobody changes or shortens the file. The store writes a blob
    // under another name, makes it read-only and renames it into place; after that it is only ever
    // unlinked or replaced as a whole, which leaves the mapped inode as it is.
    let mapped = unsafe { Mmap::map(file)? };
    Ok(Blob::of(Mapped(mapped)))
}

struct Mapped(Mmap);

impl Memory for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn leave(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        // SAFETY: the mapping is of a file, shared and only read: a page that is let go comes back
        // from the file, with the bytes that it had, since nobody changes the file (see
        // `map`).
        let left = unsafe {
            self.0
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // Advice only: who does not follow it keeps more in memory.
        let _ = left;
    }
}
