//! TQ2_0: 256 values `d * (q - 1)`, d a half, q two bits. `block_tq2_0` of ggml-common.h.

use super::bits::pairs_of_bits;
use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const BYTES: usize = 66;
const _: () = assert!(BYTES == LEN / 4 + 2);

/// The format TQ2_0.
pub(super) static TQ2_0: Blockwise<BYTES, LEN, 1> = Blockwise {
    codes: Element::Int4,
    numbers: Element::F16,
    offsets: false,
    parts,
};

fn parts(block: &[u8; BYTES]) -> Parts<LEN, 1> {
    let [codes @ .., d0, d1] = block;
    Parts::scaled(
        pairs_of_bits(codes).map(|code| code as i8 - 1),
        [half([*d0, *d1])],
    )
}
