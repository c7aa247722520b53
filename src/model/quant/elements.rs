//! Reads and writes the elements of blobs. They are little-endian; two 4-bit codes share a byte,
//! the even element in the low nibble.

use half::{bf16, f16};

use crate::model::weight::Element;

/// The code at `index`.
#[inline]
pub(super) fn code_at(element: Element, codes: &[u8], index: usize) -> i32 {
    match element {
        Element::Int4 => i32::from((nibble_at(codes, index) << 4) as i8 >> 4),
        Element::Uint4 => i32::from(nibble_at(codes, index)),
        Element::Uint8 => i32::from(codes[index]),
        _ => i32::from(codes[index] as i8),
    }
}

#[inline]
fn nibble_at(codes: &[u8], index: usize) -> u8 {
    codes[index / 2] >> (4 * (index % 2)) & 15
}

/// The element at `index`, of any type, as a number; 0 for floats beyond the end.
#[inline]
pub fn number_at(element: Element, bytes: &[u8], index: usize) -> f32 {
    match element {
        Element::F32 => f32::from_le_bytes(bytes_at(bytes, index)),
        Element::F16 => f16::from_le_bytes(bytes_at(bytes, index)).to_f32(),
        Element::Bf16 => bf16::from_le_bytes(bytes_at(bytes, index)).to_f32(),
        _ => code_at(element, bytes, index) as f32,
    }
}

/// The element of `N` bytes at `index`; zeros beyond the end.
#[inline]
fn bytes_at<const N: usize>(bytes: &[u8], index: usize) -> [u8; N] {
    let elements = bytes.as_chunks().0;
    elements.get(index).copied().unwrap_or([0; N])
}

/// Sets the code at `index`.
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

/// Sets the float at `index`, rounded to nearest, ties to even.
#[inline]
pub(super) fn set_number(element: Element, numbers: &mut [u8], index: usize, number: f32) {
    let start = index * element.bits() as usize / 8;
    write_numbers(element, &[number], &mut numbers[start..]);
}

/// Writes codes. There must be an even number of 4-bit codes.
#[inline]
pub(super) fn write_codes(element: Element, codes: &[i8], out: &mut [u8]) {
    match element {
        Element::Int4 | Element::Uint4 => {
            for (out, [even, odd]) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
                *out = (*even as u8 & 0x0f) | (*odd as u8) << 4;
            }
        }
        _ => {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = *code as u8;
            }
        }
    }
}

/// Writes floats, rounded to nearest, ties to even.
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
    for (out, number) in out.as_chunks_mut().0.iter_mut().zip(numbers) {
        *out = encode(*number);
    }
}
