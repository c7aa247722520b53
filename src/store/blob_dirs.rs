//! Checks whether thousands of blobs exist without looking for each: a folder with an unchanged
//! stamp still has the same files.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use super::Stamp;
use crate::base::{Code, Digest, Problem, Result, hash_bytes};

/// Digests of blobs as text, sorted and without duplicates. Parsed only when needed.
pub struct BlobList<'a>(Cow<'a, str>);

impl<'a> BlobList<'a> {
    /// The list of `blobs`.
    pub fn new(blobs: impl Iterator<Item = Digest>) -> BlobList<'static> {
        let mut blobs: Vec<Digest> = blobs.collect();
        blobs.sort_unstable();
        blobs.dedup();
        let words: Vec<String> = blobs.iter().map(Digest::to_string).collect();
        BlobList(words.join(" ").into())
    }

    /// The list with this [`text`](Self::text).
    pub fn from_text(text: &'a str) -> BlobList<'a> {
        BlobList(text.into())
    }

    /// The digests on one line, with spaces between them.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The digests.
    pub fn digests(&self) -> Result<Vec<Digest>> {
        let mut digests = vec![];
        for word in self.0.split_ascii_whitespace() {
            match word.parse() {
                Ok(digest) => digests.push(digest),
                Err(error) => return Err(Problem::new(Code::Digest, error)),
            }
        }
        Ok(digests)
    }
}

/// For lists with a shorter text, looking for each blob is faster than reading a note.
pub(super) const MIN_NOTE_BYTES: usize = 64 * 70;

/// The key of the note with the [`digest`] of all folders when all blobs of `list` existed.
pub(super) fn note_key(list: &BlobList) -> Digest {
    let list = hash_bytes(list.text().as_bytes());
    hash_bytes(format!("when were they there: {list}").as_bytes())
}

/// A digest of the stamps of all folders in `blobs`. Valid for the life of the process: no blob is
/// removed while a kiln has the cache open.
pub(super) fn digest(blobs: &Path) -> Digest {
    let mut stamps = vec![];
    for dir in 0..=u8::MAX {
        let folder = fs::metadata(blobs.join(format!("{dir:02x}"))).ok();
        stamps.push(folder.as_ref().map(Stamp::of));
    }
    hash_bytes(format!("{stamps:?}").as_bytes())
}
