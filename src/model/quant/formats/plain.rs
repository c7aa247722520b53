//! F32, F16 and BF16: values without blocks.

use crate::model::quant::{NativeEncoding, QuantFormat, kernels};
use crate::model::weight::Element;

/// IEEE binary32.
pub(crate) struct F32;
/// IEEE binary16.
pub(crate) struct F16;
/// bfloat16: the upper 16 bits of an f32.
pub(crate) struct Bf16;

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
    // All bits of the exponent are set.
    match element {
        Element::F32 => find_first(bytes, |value| {
            u32::from_le_bytes(*value) & 0x7f80_0000 == 0x7f80_0000
        }),
        Element::F16 => find_first(bytes, |value| u16::from_le_bytes(*value) & 0x7c00 == 0x7c00),
        Element::Bf16 => find_first(bytes, |value| u16::from_le_bytes(*value) & 0x7f80 == 0x7f80),
        Element::Int8 | Element::Uint8 | Element::Int4 | Element::Uint4 => None,
    }
}

/// The index of the first element of `N` bytes for which `is_bad`.
fn find_first<const N: usize>(bytes: &[u8], is_bad: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
    const CHUNK: usize = 1024;
    let elements = bytes.as_chunks::<N>().0;
    for (number, chunk) in elements.chunks(CHUNK).enumerate() {
        // Without an early exit, so that the compiler can vectorize the loop.
        let mut any_bad = false;
        for element in chunk {
            any_bad |= is_bad(element);
        }
        if !any_bad {
            continue;
        }
        for (index, element) in chunk.iter().enumerate() {
            if is_bad(element) {
                return Some(number * CHUNK + index);
            }
        }
    }
    None
}
