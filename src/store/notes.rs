//! Small texts that may be lost at any time: losing one costs time, nothing else.

use crate::base::{Digest, Result, hash_bytes};

/// Texts by the digest of what they are about.
pub trait Notes: Send + Sync {
    /// The note under `key`; `None` if it was never written, lost or damaged.
    fn read(&self, key: &Digest) -> Result<Option<Note>>;

    /// Replaces the note under `key`. Does nothing in a read-only store.
    fn write(&self, key: &Digest, text: &str) -> Result<()>;
}

/// The key of the note that the action of `key_hex` ran for this cache, with a digest of its
/// outputs as text.
pub fn local_run_note(key_hex: &str) -> Digest {
    hash_bytes(format!("what {key_hex} gave when it ran for this cache").as_bytes())
}

/// A text and its digest.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// BLAKE3 and length of the text.
    pub digest: Digest,
    /// The text.
    pub text: String,
}

impl Note {
    /// A note with `text`.
    pub fn new(text: String) -> Note {
        Note {
            digest: hash_bytes(text.as_bytes()),
            text,
        }
    }
}
