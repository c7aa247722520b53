//! Q2_K: 256 values `d * sc * q - dmin * m`, d and dmin halves, sc and m four bits each for every
//! 16 values. `block_q2_K` of ggml-common.h.

use super::bits::pairs_of_bits;
use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 16;
const BYTES: usize = 84;
const _: () = assert!(BYTES == RUNS + LEN / 4 + 2 + 2);

/// The format Q2_K.
pub(super) static Q2_K: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Uint4,
    numbers: Element::F32,
    offsets: true,
    parts,
};

fn parts(block: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let [rest @ .., d0, d1, m0, m1] = block;
    let (sub_scales, codes) = rest.split_at(RUNS);
    let (d, dmin) = (half([*d0, *d1]), half([*m0, *m1]));
    Parts {
        codes: pairs_of_bits(codes).map(|code| code as i8),
        scales: std::array::from_fn(|run| d * f32::from(sub_scales[run] & 0x0f)),
        offsets: std::array::from_fn(|run| -(dmin * f32::from(sub_scales[run] >> 4))),
    }
}
