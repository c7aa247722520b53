//! Q5_K: 256 values `d * sc * q - dmin * m`: Q4_K with a fifth bit for each code. `block_q5_K` of
//! ggml-common.h.

use super::bits::{bit_planes, nibbles};
use super::blockwise::{Blockwise, Parts};
use super::q4_k::{HEAD, RUNS, scales_offsets};
use crate::model::weight::Element;

const LEN: usize = 256;
const BYTES: usize = 176;
const _: () = assert!(BYTES == HEAD + LEN / 8 + LEN / 2);

/// The format Q5_K.
pub(super) static Q5_K: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: true,
    parts,
};

fn parts(block: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (head, rest) = block.split_at(HEAD);
    let (high, low) = rest.split_at(LEN / 8);
    let (low, high) = (nibbles::<LEN>(low, 32), bit_planes(high));
    let (scales, offsets) = scales_offsets(head);
    Parts {
        codes: std::array::from_fn(|i| (low[i] | high[i] << 4) as i8),
        scales,
        offsets,
    }
}
