//! A cursor over untrusted bytes: every read is checked against what is left.

use crate::base::{Problem, Result};

/// Longest string, as in gguf.cpp (`GGUF_MAX_STRING_LENGTH`).
const MAX_STRING_BYTES: u64 = 1 << 30;

/// Reads little-endian numbers and strings, which it borrows.
pub struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, position: 0 }
    }

    /// How many bytes were read.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many are left.
    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// The bytes from `start` up to here.
    pub fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.position).unwrap_or_default()
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        if count > self.remaining() {
            return Err(Problem::new(
                "kiln::model::gguf_truncated",
                format!(
                    "{count} bytes are announced at byte {}, but only {} are left",
                    self.position,
                    self.remaining()
                ),
            )
            .help("the file is truncated or damaged; fetch it again"));
        }
        let start = self.position;
        self.position += count as usize;
        Ok(&self.bytes[start..self.position])
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    /// The next unsigned 32-bit number.
    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next unsigned 64-bit number.
    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next string: its length, then UTF-8.
    pub fn string(&mut self) -> Result<&'a str> {
        let start = self.position;
        let problem =
            |what: String| Problem::new("kiln::model::gguf_string", format!("string at byte {start}: {what}"));
        let length = self.u64()?;
        if length > MAX_STRING_BYTES {
            return Err(problem(format!("{length} bytes; at most {MAX_STRING_BYTES} are allowed")));
        }
        std::str::from_utf8(self.take(length)?).map_err(|error| problem(format!("not UTF-8: {error}")))
    }

    /// A count of items of at least `smallest` bytes each: what cannot lie in the rest of the file is refused before
    /// anything is allocated for it.
    pub fn count(&self, claimed: u64, smallest: u64, cap: u64, what: &str) -> Result<usize> {
        let room = self.remaining() / smallest;
        if claimed <= cap && claimed <= room {
            return Ok(claimed as usize);
        }
        Err(Problem::new(
            "kiln::model::gguf_count",
            format!("{claimed} {what} are announced; the file has room for {room}, and at most {cap} are allowed"),
        )
        .help("the file is truncated or damaged; fetch it again"))
    }
}
