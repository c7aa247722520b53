//! The one place that maps files into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

use crate::action::Blob;

/// The bytes of a blob's file.
pub(super) fn map(file: &File) -> io::Result<Blob> {
    // SAFETY: a mapping is sound while nobody changes or shortens the file. The store writes a blob
    // under another name, makes it read-only and renames it into place; after that it is only ever
    // unlinked or replaced as a whole, which leaves the mapped inode as it is.
    let mapped = unsafe { Mmap::map(file)? };
    Ok(Blob::new(mapped))
}
