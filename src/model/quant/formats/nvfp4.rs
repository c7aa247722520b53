//! NVFP4: 64 values of a floating point of four bits, with a scale in eight bits for every 16.
//! `block_nvfp4` of ggml-common.h. The scale of the whole tensor, where there is one, is a tensor
//! of its own.

use super::bits::nibbles;
use super::blockwise::{Blockwise, Parts};
use super::mxfp4::E2M1_DOUBLED;
use crate::model::weight::Element;

const LEN: usize = 64;
const RUNS: usize = 4;
const BYTES: usize = 36;
const _: () = assert!(BYTES == RUNS + LEN / 2);

/// The format NVFP4. Every scale is a half: four significant bits, from 2^-10 to 224.
pub(super) static NVFP4: Blockwise<BYTES, LEN, RUNS> = Blockwise {
    codes: Element::Int8,
    numbers: Element::F16,
    offsets: false,
    parts,
};

fn parts(block: &[u8; BYTES]) -> Parts<LEN, RUNS> {
    let (scales, codes) = block.split_at(RUNS);
    let codes = nibbles::<LEN>(codes, 8).map(|code| E2M1_DOUBLED[usize::from(code)]);
    Parts::scaled(codes, std::array::from_fn(|run| half_of_ue4m3(scales[run])))
}

/// Half the value, because the codes are doubled; the sign bit is not looked at, and 0x7f, the NaN,
/// is 0 as in ggml.
fn half_of_ue4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (bits >> 3 & 0x0f, f32::from(bits & 7));
    match (bits, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa * 2f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(exponent) - 8),
    }
}
