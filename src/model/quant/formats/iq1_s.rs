//! IQ1_S: 256 values `d * (2 sc + 1) * (book[q] ± 1/8)`, eight at once, d a half, sc three bits and
//! a sign for every 32 values. `block_iq1_s` of ggml-common.h.

use super::bits::u16_at;
use super::blockwise::{Blockwise, Parts};
use super::codebook::unpacked;
use super::grids;
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 8;
const BYTES: usize = 50;
const _: () = assert!(BYTES == 2 + LEN / 8 + RUNS * 2);

/// The format IQ1_S.
pub(super) static IQ1_S: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

/// The book of the IQ1 formats.
static BOOK: [[i8; 8]; 2048] = unpacked(&grids::IQ1_S, &[-1, 0, 1], 2);

/// The low eight bits of the indices; then for each run the high three bits of its four, the
/// sub-scale, and the sign.
fn parts([d0, d1, rest @ ..]: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (low, high) = rest.split_at(LEN / 8);
    let d = half([*d0, *d1]);
    let mut codes = [0; LEN];
    for (group, out) in codes.as_chunks_mut().0.iter_mut().enumerate() {
        let high = u16_at(high, group / 4);
        *out = eighths(low[group], high >> (group % 4 * 3), high >> 15 == 1);
    }
    Parts::scaled(
        codes,
        std::array::from_fn(|run| eighth(d, u16_at(high, run) >> 12)),
    )
}

/// Entry `low` and three bits of `high`, an eighth more, or less where `minus`; in eighths.
pub(super) fn eighths(low: u8, high: u16, minus: bool) -> [i8; 8] {
    let entry = &BOOK[usize::from(low) | usize::from(high & 7) << 8];
    entry.map(|value| 8 * value + if minus { -1 } else { 1 })
}

/// The scale of an eighth, under three bits of `sub_scale`.
pub(super) fn eighth(d: f32, sub_scale: u16) -> f32 {
    d * f32::from(2 * (sub_scale & 7) + 1) / 8.0
}
