//! IQ3_S: 256 values `d * (2 sc + 1) * ±book[q]`, four at once, d a half, sc four bits for every 32
//! values. `block_iq3_s` of ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use super::codebook::{signed, unpacked};
use super::grids;
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 8;
const BYTES: usize = 110;
const _: () = assert!(BYTES == 2 + LEN / 4 + LEN / 32 + LEN / 8 + RUNS / 2);

/// The format IQ3_S.
pub(super) static IQ3_S: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

static BOOK: [[i8; 4]; 512] = unpacked(&grids::IQ3_S, &[1, 3, 5, 7, 9, 11, 13, 15], 3);

/// The low eight bits of the indices, their ninth, the signs, the sub-scales.
fn parts([d0, d1, rest @ ..]: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (low, rest) = rest.split_at(LEN / 4);
    let (high, rest) = rest.split_at(LEN / 32);
    let (signs, sub_scales) = rest.split_at(LEN / 8);
    let d = half([*d0, *d1]);
    let mut codes = [0; LEN];
    for (group, out) in codes.as_chunks_mut().0.iter_mut().enumerate() {
        let high = high[group / 8] >> (group % 8) & 1;
        let index = usize::from(low[group]) | usize::from(high) << 8;
        *out = signed(&BOOK[index], signs[group / 2] >> (group % 2 * 4));
    }
    let sub_scale = |run: usize| f32::from(sub_scales[run / 2] >> (run % 2 * 4) & 0x0f);
    Parts::scaled(
        codes,
        std::array::from_fn(|run| d * (1.0 + 2.0 * sub_scale(run))),
    )
}
