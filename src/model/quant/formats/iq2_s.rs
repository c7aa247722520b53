//! IQ2_S: 256 values `d * (sc + 1/2) / 4 * ±book[q]`, eight at once, d a half, sc four bits for
//! every 16 values. `block_iq2_s` of ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use super::codebook::{signed, unpacked};
use super::grids;
use super::iq2_xxs::{MAGNITUDES, sub_scale};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 16;
const BYTES: usize = 82;
const _: () = assert!(BYTES == 2 + LEN / 8 + LEN / 8 + LEN / 32 + RUNS / 2);

/// The format IQ2_S.
pub(super) static IQ2_S: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

static BOOK: [[i8; 8]; 1024] = unpacked(&grids::IQ2_S, &MAGNITUDES, 2);

/// The low eight bits of the indices, all signs, the high two bits of four indices in a byte, the
/// sub-scales.
fn parts([d0, d1, rest @ ..]: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (low, rest) = rest.split_at(LEN / 8);
    let (signs, rest) = rest.split_at(LEN / 8);
    let (high, sub_scales) = rest.split_at(LEN / 32);
    let d = half([*d0, *d1]);
    let mut codes = [0; LEN];
    for (group, out) in codes.as_chunks_mut().0.iter_mut().enumerate() {
        let high = high[group / 4] >> (group % 4 * 2) & 3;
        *out = signed(
            &BOOK[usize::from(low[group]) | usize::from(high) << 8],
            signs[group],
        );
    }
    Parts::scaled(
        codes,
        std::array::from_fn(|run| sub_scale(d, sub_scales[run / 2] >> (run % 2 * 4) & 0x0f)),
    )
}
