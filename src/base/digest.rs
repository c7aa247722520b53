//! The digest that names a blob: its BLAKE3 hash and its length.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// BLAKE3 hash and length of some bytes; prints as `b3:<hex>/<size>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    /// BLAKE3, 256 bits.
    pub hash: [u8; 32],
    /// Length of the hashed bytes.
    pub size_bytes: u64,
}

impl Digest {
    /// The hash in lower-case hexadecimal: 64 characters.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.hash).to_hex().to_string()
    }

    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        format!("b3:{}", &self.hex()[..12])
    }
}

/// Hashes a stream of bytes.
#[derive(Default)]
pub struct Hasher {
    inner: blake3::Hasher,
    size_bytes: u64,
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.inner.update(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    /// Adds the next bytes, on all threads of the rayon pool.
    pub fn update_with_all_threads(&mut self, bytes: &[u8]) {
        self.inner.update_rayon(bytes);
        self.size_bytes += bytes.len() as u64;
    }

    /// The digest of everything added.
    pub fn finish(&self) -> Digest {
        Digest {
            hash: *self.inner.finalize().as_bytes(),
            size_bytes: self.size_bytes,
        }
    }
}

/// The digest of `bytes`; large slices use all threads of the rayon pool.
pub fn hash_bytes(bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    if bytes.len() < 1 << 20 {
        hasher.update(bytes);
    } else {
        hasher.update_rayon(bytes);
    }
    Digest {
        hash: *hasher.finalize().as_bytes(),
        size_bytes: bytes.len() as u64,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{}/{}", self.hex(), self.size_bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("b3:")
            && let Some((hex, size)) = rest.split_once('/')
            && let Ok(hash) = blake3::Hash::from_hex(hex)
            && let Ok(size_bytes) = size.parse()
        {
            return Ok(Digest {
                hash: *hash.as_bytes(),
                size_bytes,
            });
        }
        Err(format!(
            "`{text}` is not a digest: b3:<64 hexadecimal digits>/<size in bytes>"
        ))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Not `collect_str`, which is slower for thousands of digests.
        serializer.serialize_str(&self.to_string())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_parsed_from_its_text() {
        let digest = hash_bytes(b"clay");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        assert_eq!(digest.size_bytes, 4);
    }

    #[test]
    fn streaming_gives_the_same_digest() {
        let bytes: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        let mut hasher = Hasher::default();
        for chunk in bytes.chunks(777) {
            hasher.update(chunk);
        }
        assert_eq!(hasher.finish(), hash_bytes(&bytes));
    }
}
