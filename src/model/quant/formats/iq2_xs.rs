//! IQ2_XS: 256 values `d * (sc + 1/2) / 4 * ±book[q]`, eight at once, d a half, sc four bits for
//! every 16 values. `block_iq2_xs` of ggml-common.h.

use super::bits::u16_at;
use super::blockwise::{Blockwise, Parts};
use super::codebook::{even_signs, signed, unpacked};
use super::grids;
use super::iq2_xxs::{MAGNITUDES, sub_scale};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 16;
const BYTES: usize = 74;
const _: () = assert!(BYTES == 2 + LEN / 8 * 2 + RUNS / 2);

/// The format IQ2_XS.
pub(super) static IQ2_XS: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

static BOOK: [[i8; 8]; 512] = unpacked(&grids::IQ2_XS, &MAGNITUDES, 2);

/// Nine bits of index and seven signs for eight values, then the sub-scales, two in a byte.
fn parts([d0, d1, rest @ ..]: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (groups, sub_scales) = rest.split_at(LEN / 8 * 2);
    let d = half([*d0, *d1]);
    let mut codes = [0; LEN];
    for (group, out) in codes.as_chunks_mut().0.iter_mut().enumerate() {
        let bits = u16_at(groups, group);
        *out = signed(
            &BOOK[usize::from(bits & 0x1ff)],
            even_signs(u32::from(bits >> 9)),
        );
    }
    Parts::scaled(
        codes,
        std::array::from_fn(|run| sub_scale(d, sub_scales[run / 2] >> (run % 2 * 4) & 0x0f)),
    )
}
