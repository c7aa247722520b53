//! SHA-256, which the world checks files by. A content's is computed once and noted in the cache.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::{BlobStore, Notes};
use crate::action::Content;
use crate::base::{Code, Problem, Result, hash_bytes};

/// So many bytes are hashed sooner than a note on them is found.
const WORTH_A_NOTE_BYTES: u64 = 1 << 16;

/// As much of a blob is in memory at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A SHA-256; prints as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// That of `content`, which lies in `blobs`.
    pub fn of(content: &Content, blobs: &dyn BlobStore, notes: &dyn Notes) -> Result<Sha256> {
        if content.digest.size_bytes < WORTH_A_NOTE_BYTES {
            return hash(content, blobs);
        }
        let question = hash_bytes(format!("sha256 of {}", content.digest).as_bytes());
        if let Some(known) = notes
            .read(&question)?
            .and_then(|note| note.text.parse().ok())
        {
            return Ok(known);
        }
        let sha256 = hash(content, blobs)?;
        notes.write(&question, &sha256.to_string())?;
        Ok(sha256)
    }
}

fn hash(content: &Content, blobs: &dyn BlobStore) -> Result<Sha256> {
    let bytes = blobs.content(content)?.ok_or_else(|| {
        Problem::new(
            Code::StoreGone,
            format!("the blob {} is gone from the cache", content.blob()),
        )
        .help("run the same command again: what made this blob runs again")
    })?;
    let mut hasher = sha2::Sha256::new();
    bytes.stream(PIECE_BYTES, |piece| {
        hasher.update(piece);
        Ok::<(), Problem>(())
    })?;
    Ok(Sha256(hasher.finalize().into()))
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Sha256 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
        let is_hex = text.len() == 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let bytes: Option<Vec<u8>> = is_hex.then(|| (0..32).map(digits).collect()).flatten();
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Sha256)
            .ok_or_else(|| {
                format!(
                    "`{}` is not a sha256: 64 lower-case hexadecimal digits",
                    text.escape_debug()
                )
            })
    }
}

impl TryFrom<String> for Sha256 {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(sha256: Sha256) -> String {
        sha256.to_string()
    }
}
