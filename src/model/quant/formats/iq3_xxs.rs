//! IQ3_XXS: 256 values `d * (sc + 1/2) / 2 * ±book[q]`, four at once, d a half, sc four bits for
//! every 32 values. `block_iq3_xxs` of ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use super::codebook::{even_signs, signed, unpacked};
use super::grids;
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 8;
const BYTES: usize = 98;
const _: () = assert!(BYTES == 2 + LEN / 4 + RUNS * 4);

/// The format IQ3_XXS.
pub(super) static IQ3_XXS: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

static BOOK: [[i8; 4]; 256] = unpacked(&grids::IQ3_XXS, &[4, 12, 20, 28, 36, 44, 52, 62], 3);

/// The indices; then for each run four times seven signs and the sub-scale in 32 bits.
fn parts([d0, d1, rest @ ..]: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (indices, words) = rest.split_at(LEN / 4);
    let words: [u32; RUNS] = std::array::from_fn(|run| {
        let at = 4 * run;
        u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]])
    });
    let d = half([*d0, *d1]);
    let mut codes = [0; LEN];
    for (group, out) in codes.as_chunks_mut().0.iter_mut().enumerate() {
        // Eight signs serve two groups.
        let signs = even_signs(words[group / 8] >> (group / 2 % 4 * 7)) >> (group % 2 * 4);
        *out = signed(&BOOK[usize::from(indices[group])], signs);
    }
    Parts::scaled(
        codes,
        words.map(|word| d * (0.5 + (word >> 28) as f32) * 0.5),
    )
}
