//! Q1_0: 128 values `d` or `-d`, d a half. `block_q1_0` of ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 128;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + LEN / 8);

/// The format Q1_0.
pub(super) static Q1_0: Blockwise<BYTES, LEN, 1> = Blockwise {
    codes: Element::Int4,
    numbers: Element::F16,
    offsets: false,
    parts,
};

fn parts([d0, d1, bits @ ..]: &[u8; BYTES]) -> Parts<LEN, 1> {
    Parts::scaled(
        std::array::from_fn(|i| (bits[i / 8] >> (i % 8) & 1) as i8 * 2 - 1),
        [half([*d0, *d1])],
    )
}
