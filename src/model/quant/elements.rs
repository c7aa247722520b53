//! Elements as blobs hold them: little-endian; codes of 4 bits two a byte, the even element in the
//! low nibble.

use half::{bf16, f16};

use crate::model::weight::Element;

/// Element `index`, a code, as it is.
#[inline]
pub(super) fn code_at(element: Element, codes: &[u8], index: usize) -> i32 {
    let nibble = || codes[index / 2] >> (4 * (index % 2)) & 15;
    match element {
        Element::Int4 => i32::from((nibble() << 4) as i8 >> 4),
        Element::Uint4 => i32::from(nibble()),
        Element::Uint8 => i32::from(codes[index]),
        _ => i32::from(codes[index] as i8),
    }
}

/// Element `index`, a code or not, as a number.
#[inline]
pub fn number_at(element: Element, bytes: &[u8], index: usize) -> f32 {
    match element {
        Element::F32 => bytes
            .as_chunks()
            .0
            .get(index)
            .map_or(0.0, |bytes| f32::from_le_bytes(*bytes)),
        Element::F16 => bytes
            .as_chunks()
            .0
            .get(index)
            .map_or(0.0, |bytes| f16::from_le_bytes(*bytes).to_f32()),
        Element::Bf16 => bytes
            .as_chunks()
            .0
            .get(index)
            .map_or(0.0, |bytes| bf16::from_le_bytes(*bytes).to_f32()),
        _ => code_at(element, bytes, index) as f32,
    }
}

/// Makes element `index` this code.
#[inline]
pub(super) fn set_code(element: Element, codes: &mut [u8], index: usize, code: i32) {
    match element {
        Element::Int4 | Element::Uint4 => {
            let shift = 4 * (index % 2);
            let byte = &mut codes[index / 2];
            *byte = *byte & !(15 << shift) | ((code & 15) as u8) << shift;
        }
        _ => codes[index] = code as u8,
    }
}

/// Makes element `index` this number, to nearest, ties to even.
#[inline]
pub(super) fn set_number(element: Element, numbers: &mut [u8], index: usize, number: f32) {
    write_numbers(
        element,
        &[number],
        &mut numbers[index * element.bits() as usize / 8..],
    );
}

/// Writes codes, an even number of them where they have 4 bits.
#[inline]
pub(super) fn write_codes(element: Element, codes: &[i8], out: &mut [u8]) {
    match element {
        Element::Int4 | Element::Uint4 => {
            let pairs = out.iter_mut().zip(codes.as_chunks::<2>().0);
            pairs.for_each(|(out, [even, odd])| *out = (*even as u8 & 0x0f) | (*odd as u8) << 4);
        }
        _ => out
            .iter_mut()
            .zip(codes)
            .for_each(|(out, code)| *out = *code as u8),
    }
}

/// Writes numbers, to nearest, ties to even.
#[inline]
pub fn write_numbers(element: Element, numbers: &[f32], out: &mut [u8]) {
    match element {
        Element::F16 => write_each(numbers, out, |number| f16::from_f32(number).to_le_bytes()),
        Element::Bf16 => write_each(numbers, out, |number| bf16::from_f32(number).to_le_bytes()),
        _ => write_each(numbers, out, f32::to_le_bytes),
    }
}

#[inline]
fn write_each<const N: usize>(numbers: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; N]) {
    out.as_chunks_mut()
        .0
        .iter_mut()
        .zip(numbers)
        .for_each(|(out, number)| *out = encode(*number));
}
