//! IQ2_XXS: 256 values `d * (sc + 1/2) / 4 * ±book[q]`, in groups of eight, d f16, sc four bits for
//! every 32 values. `block_iq2_xxs` of ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use super::codebook::{apply_signs, even_signs, unpack};
use super::grids;
use crate::model::quant::fp16::read_f16;
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

static BOOK: [[i8; 8]; 256] = unpack(&grids::IQ2_XXS, &MAGNITUDES, 2);

/// The magnitudes in the codebooks of the IQ2 formats.
pub(super) const MAGNITUDES: [i8; 3] = [8, 25, 43];

/// The block is: d; for each run four indices, then four times seven signs and the sub-scale in 32
/// bits.
fn parts([d0, d1, runs @ ..]: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let d = read_f16([*d0, *d1]);
    let mut codes = [0; LEN];
    let mut scales = [0.0; RUNS];
    let groups = codes.as_chunks_mut().0;
    for (run, bytes) in runs.as_chunks().0.iter().enumerate() {
        let [indices @ .., s0, s1, s2, s3]: &[u8; 8] = bytes;
        let signs = u32::from_le_bytes([*s0, *s1, *s2, *s3]);
        scales[run] = sub_scale(d, (signs >> 28) as u8);
        for (i, index) in indices.iter().enumerate() {
            let entry = &BOOK[usize::from(*index)];
            groups[4 * run + i] = apply_signs(entry, even_signs(signs >> (7 * i)));
        }
    }
    Parts::scaled(codes, scales)
}

/// The scale of a run in the IQ2 formats.
pub(super) fn sub_scale(d: f32, bits: u8) -> f32 {
    d * (0.5 + f32::from(bits)) * 0.25
}
