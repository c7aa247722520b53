//! IQ4_XS: 256 values `d * (sc - 32) * table[q]`, d a half, sc six bits for every 32 values.
//! `block_iq4_xs` of ggml-common.h.

use super::bits::{nibbles, u16_at};
use super::blockwise::{Blockwise, Parts};
use super::iq4_nl::TABLE;
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 8;
const BYTES: usize = 136;
const _: () = assert!(BYTES == 2 + 2 + RUNS / 2 + LEN / 2);

/// The format IQ4_XS.
pub(super) static IQ4_XS: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

fn parts(block: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (head, codes) = block.split_at(8);
    let (d, high, low) = (half([head[0], head[1]]), u16_at(head, 1), &head[4..]);
    let sub_scale = |run: usize| {
        (low[run / 2] >> (run % 2 * 4) & 0x0f) as i8 | ((high >> (2 * run) & 3) as i8) << 4
    };
    Parts::scaled(
        nibbles::<LEN>(codes, 16).map(|code| TABLE[usize::from(code)]),
        std::array::from_fn(|run| d * f32::from(sub_scale(run) - 32)),
    )
}
