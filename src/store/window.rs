//! Contents that lie inside of a blob. That the blob is whole says nothing of them: a result that
//! names the wrong place would give other bytes under a good digest, so they are hashed before they
//! are handed out.

use super::BlobStore;
use crate::action::{Blob, Content, Window};
use crate::base::{Code, Hasher, Problem, Result};

/// As much is hashed at a time.
const PIECE_BYTES: usize = 1 << 20;

/// The bytes where `content` says that they are; `None` if the blob is not there.
pub(super) fn cut<S: BlobStore + ?Sized>(store: &S, content: &Content) -> Result<Option<Blob>> {
    let Some(blob) = store.open(&content.blob())? else {
        return Ok(None);
    };
    let Some(window) = content.window else {
        return Ok(Some(blob));
    };
    let end = window.offset.checked_add(content.digest.size_bytes);
    let bytes = end.and_then(|end| blob.slice(window.offset..end));
    bytes
        .ok_or_else(|| wrong(content, &window, "which leaves the blob"))
        .map(Some)
}

/// The same, once they are known to be the right ones.
pub(super) fn checked<S: BlobStore + ?Sized>(store: &S, content: &Content) -> Result<Option<Blob>> {
    let cut = cut(store, content)?;
    let (Some(bytes), Some(window)) = (&cut, content.window) else {
        return Ok(cut);
    };
    let mut hasher = Hasher::default();
    bytes.stream(PIECE_BYTES, |piece| {
        hasher.update(piece);
        Ok::<(), Problem>(())
    })?;
    let found = hasher.finish();
    if found == content.digest {
        Ok(cut)
    } else {
        Err(wrong(content, &window, &format!("where {found} is")))
    }
}

fn wrong(content: &Content, window: &Window, what: &str) -> Problem {
    let Window { blob, offset } = window;
    let message = format!(
        "a result in the cache says that {} lies at byte {offset} of {blob}, {what}",
        content.digest
    );
    Problem::new(Code::StoreWindow, message).help(
        "the result is damaged or forged: `kiln cache verify --repair` removes it, and what made \
         it runs again; import only from where you would take artifacts from",
    )
}
