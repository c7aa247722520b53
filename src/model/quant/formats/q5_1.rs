//! Q5_1: 32 values `d * q + m`, d and m halves. `block_q5_1` of ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use super::q5_0;
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 32;
const BYTES: usize = 24;
const _: () = assert!(BYTES == 2 + 2 + LEN / 8 + LEN / 2);

/// The format Q5_1.
pub(super) static Q5_1: Blockwise<BYTES, LEN, 1> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F16,
    offsets: true,
    parts,
};

fn parts([d0, d1, m0, m1, rest @ ..]: &[u8; BYTES]) -> Parts<LEN, 1> {
    let codes = q5_0::codes(rest).map(|code| code as i8);
    Parts {
        codes,
        scales: [half([*d0, *d1])],
        offsets: [half([*m0, *m1])],
    }
}
