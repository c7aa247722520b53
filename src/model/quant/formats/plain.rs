//! F32, F16 and BF16: each value stands for itself.

use crate::model::quant::{NativeEncoding, QuantFormat, kernels};
use crate::model::weight::Element;

/// IEEE single.
pub struct F32;
/// IEEE half.
pub struct F16;
/// bfloat16: the upper half of a single.
pub struct Bf16;

impl QuantFormat for F32 {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        for (bytes, out) in blocks.as_chunks::<4>().0.iter().zip(out) {
            *out = f32::from_le_bytes(*bytes);
        }
    }

    fn native_encoding(&self) -> NativeEncoding {
        NativeEncoding::Values(Element::F32)
    }
}

impl QuantFormat for F16 {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().from_f16)(blocks, out);
    }

    fn native_encoding(&self) -> NativeEncoding {
        NativeEncoding::Values(Element::F16)
    }
}

impl QuantFormat for Bf16 {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        for ([low, high], out) in blocks.as_chunks::<2>().0.iter().zip(out) {
            *out = f32::from_le_bytes([0, 0, *low, *high]);
        }
    }

    fn native_encoding(&self) -> NativeEncoding {
        NativeEncoding::Values(Element::Bf16)
    }
}

/// The index of the first infinity or NaN among little-endian `element`s. Integers have none.
pub fn first_non_finite(element: Element, bytes: &[u8]) -> Option<usize> {
    // All bits of the exponent set. A fold over a run first, which the compiler can make wide.
    fn find<const N: usize>(bytes: &[u8], is_bad: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
        const RUN: usize = 1024;
        let all = bytes.as_chunks::<N>().0;
        let run = all
            .chunks(RUN)
            .position(|run| run.iter().fold(false, |bad, value| bad | is_bad(value)))?;
        all[run * RUN..]
            .iter()
            .position(is_bad)
            .map(|index| run * RUN + index)
    }
    match element {
        Element::F32 => find(bytes, |value| {
            u32::from_le_bytes(*value) & 0x7f80_0000 == 0x7f80_0000
        }),
        Element::F16 => find(bytes, |value| u16::from_le_bytes(*value) & 0x7c00 == 0x7c00),
        Element::Bf16 => find(bytes, |value| u16::from_le_bytes(*value) & 0x7f80 == 0x7f80),
        Element::Int8 | Element::Uint8 | Element::Int4 | Element::Uint4 => None,
    }
}
