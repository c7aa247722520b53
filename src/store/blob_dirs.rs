//! Whether thousands of blobs are there, without looking for each: a folder whose stamp is
//! unchanged holds the names that it held.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use super::{BlobStore, Notes, Stamp};
use crate::base::{Digest, Problem, Result, hash_bytes};

/// Digests of blobs, as text that is read only if need be: sorted, each once.
pub struct BlobList<'a>(Cow<'a, str>);

impl<'a> BlobList<'a> {
    /// The list of `blobs`.
    pub fn of(blobs: impl Iterator<Item = Digest>) -> BlobList<'static> {
        let mut blobs: Vec<Digest> = blobs.collect();
        blobs.sort_unstable();
        blobs.dedup();
        let words: Vec<String> = blobs.iter().map(Digest::to_string).collect();
        BlobList(words.join(" ").into())
    }

    /// The list that [`text`](Self::text) spelled.
    pub fn read(text: &'a str) -> BlobList<'a> {
        BlobList(text.into())
    }

    /// Its spelling, on one line.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The digests.
    pub fn digests(&self) -> Result<Vec<Digest>, Problem> {
        self.0.split_ascii_whitespace().map(str::parse).collect()
    }
}

/// The text of a list for which looking at the folders is worth a note.
const WORTH_A_NOTE_BYTES: usize = 64 * 70;

/// Whether all blobs of `list` are there. When they last were, the stamps of all folders of blobs
/// were noted: while those are the same as `now`, no name has come or gone. A blob that is there
/// but damaged is found when it is read.
pub(super) fn has_all(
    list: &BlobList,
    blobs: &dyn BlobStore,
    notes: &dyn Notes,
    now: impl Fn() -> Digest,
) -> Result<bool> {
    if list.0.len() < WORTH_A_NOTE_BYTES {
        return Ok(blobs.missing(&list.digests()?)?.is_empty());
    }
    let now = now().to_string();
    let question =
        hash_bytes(format!("when were they there: {}", hash_bytes(list.0.as_bytes())).as_bytes());
    if notes.read(&question)?.is_some_and(|note| note.text == now) {
        return Ok(true);
    }
    let are_there = blobs.missing(&list.digests()?)?.is_empty();
    if are_there {
        notes.write(&question, &now)?;
    }
    Ok(are_there)
}

/// The stamps of all folders of blobs. Nobody removes a blob while a kiln has the cache open, so
/// they hold for a process.
pub(super) fn look(blobs: &Path) -> Digest {
    let stamp = |dir: u8| {
        fs::metadata(blobs.join(format!("{dir:02x}")))
            .map(|folder| Stamp::of(&folder))
            .ok()
    };
    let stamps: Vec<Option<Stamp>> = (0..=u8::MAX).map(stamp).collect();
    hash_bytes(format!("{stamps:?}").as_bytes())
}
