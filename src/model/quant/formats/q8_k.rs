//! Q8_K: 256 values `d * q`, d a single, q a signed byte. ggml makes it of activations, and hardly
//! anyone stores it. `block_q8_K` of ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use crate::model::weight::Element;

const LEN: usize = 256;
const RUNS: usize = 8;
const BYTES: usize = 292;
const _: () = assert!(BYTES == 4 + LEN + LEN / 16 * 2);

/// The format Q8_K; the sums that end a block serve dot products only.
pub(super) static Q8_K: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

fn parts([d0, d1, d2, d3, rest @ ..]: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let d = f32::from_le_bytes([*d0, *d1, *d2, *d3]);
    Parts::scaled(std::array::from_fn(|i| rest[i] as i8), [d; RUNS])
}
