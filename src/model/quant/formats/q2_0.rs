//! Q2_0: 64 values `d * (q - 1)`, d a half, q two bits, four in a byte one after the other.
//! `block_q2_0` of ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 64;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + LEN / 4);

/// The format Q2_0.
pub(super) static Q2_0: Blockwise<BYTES, LEN, 1> = Blockwise {
    codes: Element::Int4,
    numbers: Element::F16,
    offsets: false,
    parts,
};

fn parts([d0, d1, pairs @ ..]: &[u8; BYTES]) -> Parts<LEN, 1> {
    Parts::scaled(
        std::array::from_fn(|i| (pairs[i / 4] >> (i % 4 * 2) & 3) as i8 - 1),
        [half([*d0, *d1])],
    )
}
