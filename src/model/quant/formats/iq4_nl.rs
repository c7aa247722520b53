//! IQ4_NL: 32 values `d * table[q]`, d a half. `block_iq4_nl` of ggml-common.h.

use super::bits::nibbles;
use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 32;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + LEN / 2);

/// The format IQ4_NL.
pub(super) static IQ4_NL: Blockwise<BYTES, LEN, 1> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F16,
    offsets: false,
    parts,
};

/// `kvalues_iq4nl` of ggml-common.h.
pub(super) const TABLE: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

fn parts([d0, d1, codes @ ..]: &[u8; BYTES]) -> Parts<LEN, 1> {
    Parts::scaled(
        nibbles::<LEN>(codes, 16).map(|code| TABLE[usize::from(code)]),
        [half([*d0, *d1])],
    )
}
