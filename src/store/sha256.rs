//! SHA-256, the digest that files are published with. Computed once per content and noted in the
//! cache.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::{BlobStore, Notes};
use crate::action::Content;
use crate::base::{Code, Problem, Result, hash_bytes};

/// Hashing fewer bytes than this is faster than reading a note.
const MIN_NOTED_BYTES: u64 = 1 << 16;

/// Bytes of a blob that are in memory at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A SHA-256; prints as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// The SHA-256 of `content`, which is in `blobs`.
    pub fn of(content: &Content, blobs: &dyn BlobStore, notes: &dyn Notes) -> Result<Sha256> {
        if content.digest.size_bytes < MIN_NOTED_BYTES {
            return hash(content, blobs);
        }
        let key = hash_bytes(format!("sha256 of {}", content.digest).as_bytes());
        if let Some(note) = notes.read(&key)?
            && let Ok(noted) = note.text.parse()
        {
            return Ok(noted);
        }
        let sha256 = hash(content, blobs)?;
        notes.write(&key, &sha256.to_string())?;
        Ok(sha256)
    }
}

fn hash(content: &Content, blobs: &dyn BlobStore) -> Result<Sha256> {
    let Some(bytes) = blobs.content(content)? else {
        let message = format!("the blob {} is gone from the cache", content.blob());
        return Err(Problem::new(Code::StoreGone, message)
            .help("run the same command again: what made this blob runs again"));
    };
    let mut hasher = sha2::Sha256::new();
    bytes.stream(CHUNK_BYTES, |chunk| {
        hasher.update(chunk);
        Ok::<(), Problem>(())
    })?;
    Ok(Sha256(hasher.finalize().into()))
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Sha256 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || {
            format!(
                "`{}` is not a sha256: 64 lower-case hexadecimal digits",
                text.escape_debug()
            )
        };
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (index, digit) in digits.iter().enumerate() {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return Err(invalid()),
            };
            bytes[index / 2] = bytes[index / 2] << 4 | value;
        }
        Ok(Sha256(bytes))
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
