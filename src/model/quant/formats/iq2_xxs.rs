//! IQ2_XXS: 256 values `d * (sc + 1/2) / 4 * ±book[q]`, eight at once, d a half, sc four bits for
//! every 32 values. `block_iq2_xxs` of ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use super::codebook::{even_signs, signed, unpacked};
use super::grids;
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 8;
const BYTES: usize = 66;
const _: () = assert!(BYTES == 2 + RUNS * 8);

/// The format IQ2_XXS.
pub(super) static IQ2_XXS: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

static BOOK: [[i8; 8]; 256] = unpacked(&grids::IQ2_XXS, &MAGNITUDES, 2);

/// What the books of the IQ2 formats are made of.
pub(super) const MAGNITUDES: [i8; 3] = [8, 25, 43];

/// Of a run: four indices, then four times seven signs and the sub-scale in 32 bits.
fn parts([d0, d1, runs @ ..]: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let mut parts = Parts::scaled([0; LEN], [0.0; RUNS]);
    let out = parts
        .codes
        .as_chunks_mut::<32>()
        .0
        .iter_mut()
        .zip(&mut parts.scales);
    for ([i0, i1, i2, i3, s0, s1, s2, s3], (codes, scale)) in
        runs.as_chunks::<8>().0.iter().zip(out)
    {
        let signs = u32::from_le_bytes([*s0, *s1, *s2, *s3]);
        *scale = sub_scale(half([*d0, *d1]), (signs >> 28) as u8);
        for (l, (out, index)) in codes
            .as_chunks_mut()
            .0
            .iter_mut()
            .zip([i0, i1, i2, i3])
            .enumerate()
        {
            *out = signed(&BOOK[usize::from(*index)], even_signs(signs >> (7 * l)));
        }
    }
    parts
}

/// The scale of a run in the IQ2 formats.
pub(super) fn sub_scale(d: f32, bits: u8) -> f32 {
    d * (0.5 + f32::from(bits)) * 0.25
}
