//! Q5_0: 32 values `d * (q - 16)`, d a half. `block_q5_0` of ggml-common.h.

use super::bits::nibbles;
use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 32;
const BYTES: usize = 22;
const _: () = assert!(BYTES == 2 + LEN / 8 + LEN / 2);

/// The format Q5_0.
pub(super) static Q5_0: Blockwise<BYTES, LEN, 1> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F16,
    offsets: false,
    parts,
};

fn parts([d0, d1, rest @ ..]: &[u8; BYTES]) -> Parts<LEN, 1> {
    Parts::scaled(codes(rest).map(|code| code as i8 - 16), [half([*d0, *d1])])
}

/// Codes of five bits: the fifth ones as 32 bits, then nibbles.
pub(super) fn codes([h0, h1, h2, h3, low @ ..]: &[u8; 20]) -> [u8; LEN] {
    let high = u32::from_le_bytes([*h0, *h1, *h2, *h3]);
    let mut codes = nibbles::<LEN>(low, 16);
    codes
        .iter_mut()
        .enumerate()
        .for_each(|(j, code)| *code |= ((high >> j & 1) as u8) << 4);
    codes
}
