//! Texts that may be lost at any time: losing one costs time, nothing else.

use crate::base::{Digest, Result, hash_bytes};

/// What someone found out once, by the digest of the question.
pub trait Notes: Send + Sync {
    /// The note on `question`, unless it was never written, lost or damaged.
    fn read(&self, question: &Digest) -> Result<Option<Note>>;

    /// Replaces the note on `question`; where nothing can be written, nothing is.
    fn write(&self, question: &Digest, text: &str) -> Result<()>;
}

/// What the note is about that says that the action of `key`, in hexadecimal, ran for this cache,
/// and what it gave.
pub fn ran_here(key_hex: &str) -> Digest {
    hash_bytes(format!("what {key_hex} gave when it ran for this cache").as_bytes())
}

/// A text, and its digest.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// BLAKE3 and length of the text.
    pub digest: Digest,
    /// What was written.
    pub text: String,
}

impl Note {
    /// The note that says `text`.
    pub fn new(text: String) -> Note {
        Note {
            digest: hash_bytes(text.as_bytes()),
            text,
        }
    }
}
