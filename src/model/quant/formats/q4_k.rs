//! Q4_K: 256 values `d * sc * q - dmin * m`, d and dmin halves, sc and m six bits each for every 32
//! values. `block_q4_K` of ggml-common.h.

use super::bits::nibbles;
use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const BYTES: usize = 144;
const _: () = assert!(BYTES == HEAD + LEN / 2);

/// Runs of a block of Q4_K and of Q5_K.
pub(super) const RUNS: usize = 8;
/// Bytes of what both begin with: d, dmin, and the sub-scales.
pub(super) const HEAD: usize = 2 + 2 + 12;

/// The format Q4_K.
pub(super) static Q4_K: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Uint4,
    numbers: Element::F32,
    offsets: true,
    parts,
};

fn parts(block: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (head, codes) = block.split_at(HEAD);
    let (scales, offsets) = scales_offsets(head);
    Parts {
        codes: nibbles::<LEN>(codes, 32).map(|code| code as i8),
        scales,
        offsets,
    }
}

/// `d * sc` and `-dmin * m` of each run.
pub(super) fn scales_offsets(head: &[u8]) -> ([f32; RUNS], [f32; RUNS]) {
    let (d, dmin) = (half([head[0], head[1]]), half([head[2], head[3]]));
    let bytes = &head[4..];
    let sub_scale = |run| f32::from(six_bits(bytes, run, 0, 0));
    let minimum = |run| f32::from(six_bits(bytes, run, 4, 4));
    (
        std::array::from_fn(|run| d * sub_scale(run)),
        std::array::from_fn(|run| -(dmin * minimum(run))),
    )
}

/// Of runs 0 to 3 the low six bits of a byte of its own; of runs 4 to 7 a nibble of the last four
/// bytes, under the two bits that run - 4 leaves over. `get_scale_min_k4` of ggml-quants.c.
fn six_bits(bytes: &[u8], run: usize, first: usize, shift: u32) -> u8 {
    match run {
        0..4 => bytes[first + run] & 0x3f,
        _ => (bytes[run + 4] >> shift & 0x0f) | (bytes[first + run - 4] >> 6) << 4,
    }
}
