//! A cursor over untrusted bytes: every read is checked against the number of bytes that follow.

use super::TRUNCATED_HELP;
use crate::base::{Code, Problem, Result};

/// Longest string, as in gguf.cpp (`GGUF_MAX_STRING_LENGTH`).
const MAX_STRING_BYTES: u64 = 1 << 30;

/// The order of the bytes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// The lowest first: nearly every file.
    Little,
    /// The highest first: files for s390x and similar machines.
    Big,
}

/// Reads numbers and borrowed strings.
#[derive(Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
    order: ByteOrder,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    pub fn new(bytes: &'a [u8], order: ByteOrder) -> Self {
        Reader {
            bytes,
            position: 0,
            order,
        }
    }

    /// The byte order of its numbers.
    pub fn order(&self) -> ByteOrder {
        self.order
    }

    /// Changes the byte order of the numbers that follow.
    pub fn set_order(&mut self, order: ByteOrder) {
        self.order = order;
    }

    /// How many bytes were read.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many bytes follow.
    pub fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// The bytes from `start` to the current position.
    pub fn since(&self, start: usize) -> &'a [u8] {
        self.bytes.get(start..self.position).unwrap_or_default()
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        if count > self.remaining() {
            return Err(Problem::new(
                Code::ModelGgufTruncated,
                format!(
                    "{count} bytes are announced at byte {}, but only {} are left",
                    self.position,
                    self.remaining()
                ),
            )
            .help(TRUNCATED_HELP));
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

    /// The next number of `N` bytes, converted to little-endian.
    pub fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = self.array()?;
        if self.order == ByteOrder::Big {
            out.reverse();
        }
        Ok(out)
    }

    /// The next unsigned 32-bit number.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    /// The next unsigned 64-bit number.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    /// The next string: its length, then UTF-8.
    pub fn string(&mut self) -> Result<&'a str> {
        let start = self.position;
        let length = self.u64()?;
        if length > MAX_STRING_BYTES {
            return Err(invalid_string(
                start,
                &format!("{length} bytes; at most {MAX_STRING_BYTES} are allowed"),
            ));
        }
        std::str::from_utf8(self.take(length)?)
            .map_err(|error| invalid_string(start, &format!("not UTF-8: {error}")))
    }

    /// Skips `count` strings, each checked as [`Reader::string`] does. This is one tight loop,
    /// because a vocabulary has hundreds of thousands of them. [`Reader::string`] reads an invalid
    /// string again for its message.
    pub fn skip_strings(&mut self, count: usize) -> Result<()> {
        let mut rest = &self.bytes[self.position..];
        for _ in 0..count {
            let Some(next) = after_string(rest, self.order) else {
                self.position = self.bytes.len() - rest.len();
                self.string()?;
                return Ok(());
            };
            rest = next;
        }
        self.position = self.bytes.len() - rest.len();
        Ok(())
    }

    /// Checks a count of items of at least `smallest` bytes each, before memory is allocated for
    /// them: they must fit in the rest of the file.
    pub fn count(&self, claimed: u64, smallest: u64, cap: u64, what: &str) -> Result<usize> {
        let fitting = self.remaining() / smallest;
        if claimed <= cap && claimed <= fitting {
            return Ok(claimed as usize);
        }
        Err(Problem::new(
            Code::ModelGgufCount,
            format!(
                "{claimed} {what} are announced; the file has room for {fitting}, and at most \
                 {cap} are allowed"
            ),
        )
        .help("the file is truncated or damaged; fetch it again"))
    }
}

fn invalid_string(start: usize, what: &str) -> Problem {
    Problem::new(
        Code::ModelGgufString,
        format!("string at byte {start}: {what}"),
    )
}

/// The bytes after the string at the start of `bytes`; `None` if the string is invalid.
fn after_string(bytes: &[u8], order: ByteOrder) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = match order {
        ByteOrder::Little => u64::from_le_bytes(*length),
        ByteOrder::Big => u64::from_be_bytes(*length),
    };
    if length > rest.len() as u64 || length > MAX_STRING_BYTES {
        return None;
    }
    let (text, rest) = rest.split_at(length as usize);
    std::str::from_utf8(text).ok()?;
    Some(rest)
}
