//! A cursor over untrusted bytes: every read is checked against what is left.

use super::CUT;
use crate::base::{Code, Problem, Result};

/// Longest string, as in gguf.cpp (`GGUF_MAX_STRING_LENGTH`).
const MAX_STRING_BYTES: u64 = 1 << 30;

/// The order of the bytes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// The lowest first: nearly every file.
    Little,
    /// The highest first: files of s390x and its kin.
    Big,
}

/// Reads numbers and strings, which it borrows.
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

    /// The order of the bytes of its numbers.
    pub fn order(&self) -> ByteOrder {
        self.order
    }

    /// Reads on in another order.
    pub fn set_order(&mut self, order: ByteOrder) {
        self.order = order;
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
                Code::ModelGgufTruncated,
                format!(
                    "{count} bytes are announced at byte {}, but only {} are left",
                    self.position,
                    self.remaining()
                ),
            )
            .help(CUT));
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

    /// The next number of `N` bytes, the lowest first whatever the file's order.
    pub fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = self.array()?;
        if self.order == ByteOrder::Big {
            out.reverse();
        }
        Ok(out)
    }

    /// The next unsigned 32-bit number.
    pub fn u32(&mut self) -> Result<u32> {
        self.number().map(u32::from_le_bytes)
    }

    /// The next unsigned 64-bit number.
    pub fn u64(&mut self) -> Result<u64> {
        self.number().map(u64::from_le_bytes)
    }

    /// The next string: its length, then UTF-8.
    pub fn string(&mut self) -> Result<&'a str> {
        let start = self.position;
        let problem = |what: String| {
            Problem::new(
                Code::ModelGgufString,
                format!("string at byte {start}: {what}"),
            )
        };
        let length = self.u64()?;
        if length > MAX_STRING_BYTES {
            return Err(problem(format!(
                "{length} bytes; at most {MAX_STRING_BYTES} are allowed"
            )));
        }
        std::str::from_utf8(self.take(length)?)
            .map_err(|error| problem(format!("not UTF-8: {error}")))
    }

    /// Passes over `count` strings, each checked as [`Reader::string`] does. A vocabulary has
    /// hundreds of thousands: this is one loop over bytes at hand, and what is wrong with a
    /// string is left to the slow way to say.
    pub fn pass_strings(&mut self, count: usize) -> Result<()> {
        let order = self.order;
        let length = |bytes: &[u8; 8]| match order {
            ByteOrder::Little => u64::from_le_bytes(*bytes),
            ByteOrder::Big => u64::from_be_bytes(*bytes),
        };
        let after = |rest: &'a [u8]| {
            let (bytes, rest) = rest.split_first_chunk()?;
            let length = length(bytes);
            if length > rest.len() as u64 || length > MAX_STRING_BYTES {
                return None;
            }
            let (text, rest) = rest.split_at(length as usize);
            std::str::from_utf8(text).is_ok().then_some(rest)
        };
        let mut rest = &self.bytes[self.position..];
        for _ in 0..count {
            let Some(next) = after(rest) else {
                self.position = self.bytes.len() - rest.len();
                return self.string().map(drop);
            };
            rest = next;
        }
        self.position = self.bytes.len() - rest.len();
        Ok(())
    }

    /// A count of items of at least `smallest` bytes each: what cannot lie in the rest of the file
    /// is refused before anything is allocated for it.
    pub fn count(&self, claimed: u64, smallest: u64, cap: u64, what: &str) -> Result<usize> {
        let room = self.remaining() / smallest;
        if claimed <= cap && claimed <= room {
            return Ok(claimed as usize);
        }
        Err(Problem::new(
            Code::ModelGgufCount,
            format!(
                "{claimed} {what} are announced; the file has room for {room}, and at most {cap} \
                 are allowed"
            ),
        )
        .help("the file is truncated or damaged; fetch it again"))
    }
}
