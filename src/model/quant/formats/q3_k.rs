//! Q3_K: 256 values `d * (sc - 32) * q`, d a half, sc six bits for every 16 values, q from -4 to 3.
//! `block_q3_K` of ggml-common.h.

use super::bits::{bit_planes, pairs_of_bits};
use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 16;
const BYTES: usize = 110;
const _: () = assert!(BYTES == LEN / 8 + LEN / 4 + 12 + 2);

/// The format Q3_K.
pub(super) static Q3_K: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int4,
    numbers: Element::F32,
    offsets: false,
    parts,
};

fn parts(block: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let [rest @ .., d0, d1] = block;
    let (high, rest) = rest.split_at(LEN / 8);
    let (low, sub_scales) = rest.split_at(LEN / 4);
    let d = half([*d0, *d1]);
    let (low, high) = (pairs_of_bits(low), bit_planes(high));
    Parts::scaled(
        std::array::from_fn(|i| (low[i] | high[i] << 2) as i8 - 4),
        std::array::from_fn(|run| d * f32::from(sub_scale(sub_scales, run) as i8 - 32)),
    )
}

/// Six bits: the low four are a nibble of the first eight bytes, the high two lie in the last four.
fn sub_scale(bytes: &[u8], run: usize) -> u8 {
    let low = bytes[run % 8] >> (run / 8 * 4) & 0x0f;
    let high = bytes[8 + run % 4] >> (run / 4 * 2) & 3;
    low | high << 4
}
