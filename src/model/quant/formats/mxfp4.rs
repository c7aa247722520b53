//! MXFP4: 32 values of a floating point of four bits under a power of two. `block_mxfp4` of
//! ggml-common.h; the format is of the OCP Microscaling specification.

use super::bits::nibbles;
use super::blockwise::{Blockwise, Parts};
use crate::model::weight::Element;

const LEN: usize = 32;
const BYTES: usize = 17;
const _: () = assert!(BYTES == 1 + LEN / 2);

/// The format MXFP4.
pub(super) static MXFP4: Blockwise<BYTES, LEN, 1> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F32,
    offsets: false,
    parts,
};

/// The values of E2M1 (two bits of exponent, one of mantissa) times two: `kvalues_mxfp4` of
/// ggml-common.h.
pub(super) const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

fn parts([exponent, codes @ ..]: &[u8; BYTES]) -> Parts<LEN, 1> {
    let codes = nibbles::<LEN>(codes, 16).map(|code| E2M1_DOUBLED[usize::from(code)]);
    Parts::scaled(codes, [half_of_e8m0(*exponent)])
}

/// 2^(e - 127) / 2, because the codes are doubled; the two smallest are subnormal.
fn half_of_e8m0(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0..2 => 0x0020_0000 << exponent,
        _ => u32::from(exponent - 1) << 23,
    })
}
