//! IQ1_M: 256 values `d * (2 sc + 1) * (book[q] ± 1/8)`, eight at once, each eight with a sign, d a
//! half, sc three bits for every 16 values. `block_iq1_m` of ggml-common.h.

use super::bits::u16_at;
use super::blockwise::{Blockwise, Parts};
use super::iq1_s::{eighth, eighths};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 16;
const BYTES: usize = 56;
const _: () = assert!(BYTES == LEN / 8 + LEN / 16 + RUNS / 4 * 2);

/// The format IQ1_M.
pub(super) static IQ1_M: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

/// The low eight bits of the indices; nibbles of their high three and the sign; four words of four
/// sub-scales, which have a nibble of d on top.
fn parts(block: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (low, rest) = block.split_at(LEN / 8);
    let (high, words) = rest.split_at(LEN / 16);
    let words: [u16; 4] = std::array::from_fn(|word| u16_at(words, word));
    let d = words.iter().rev().fold(0, |d, word| d << 4 | word >> 12);
    let d = half(u16::to_le_bytes(d));
    let mut codes = [0; LEN];
    for (group, out) in codes.as_chunks_mut().0.iter_mut().enumerate() {
        let high = high[group / 2] >> (group % 2 * 4);
        *out = eighths(low[group], u16::from(high), high & 8 != 0);
    }
    Parts::scaled(
        codes,
        std::array::from_fn(|run| eighth(d, words[run / 4] >> (run % 4 * 3))),
    )
}
