//! Contents that are ranges of a larger blob.
//!
//! An intact blob does not prove that a window is right: a result with a wrong offset would return
//! other bytes under a valid digest. So a window is hashed before its bytes are returned.

use crate::action::{Blob, Content, Window};
use crate::base::{Code, Hasher, Problem, Result};

/// Bytes that are hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The bytes of `content` in `blob`, the blob that contains it.
pub(super) fn cut(blob: &Blob, content: &Content) -> Result<Blob> {
    let Some(window) = content.window else {
        return Ok(blob.clone());
    };
    if let Some(end) = window.offset.checked_add(content.digest.size_bytes)
        && let Some(bytes) = blob.slice(window.offset..end)
    {
        return Ok(bytes);
    }
    Err(wrong(content, &window, "which leaves the blob"))
}

/// Checks that `bytes` are those of `content`, if it is a window.
pub(super) fn check(bytes: &Blob, content: &Content) -> Result<()> {
    let Some(window) = content.window else {
        return Ok(());
    };
    let mut hasher = Hasher::default();
    bytes.stream(CHUNK_BYTES, |chunk| {
        hasher.update(chunk);
        Ok::<(), Problem>(())
    })?;
    let found = hasher.finish();
    if found != content.digest {
        return Err(wrong(content, &window, &format!("where {found} is")));
    }
    Ok(())
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
