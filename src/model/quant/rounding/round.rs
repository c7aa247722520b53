//! Encodings of values with fewer bits, and the error of each.

use half::f16;
use rayon::prelude::*;

use crate::model::quant::bands::{CHUNK_VALUES, Chunk, TILE_VALUES, slices};
use crate::model::quant::elements::write_numbers;
use crate::model::quant::formats::plain;
use crate::model::quant::fp16::read_f16;
use crate::model::quant::{
    Band, BlockTensor, ErrorLanes, ErrorSum, GridLayout, QuantFormat, first_non_finite, kernels,
};
use crate::model::weight::Element;

/// An encoding with fewer bits: codes, or the values themselves, and scales if it has them.
pub trait Rounding: Sync {
    /// Bytes of codes and scales of `values` values.
    fn bytes(&self, values: usize) -> [usize; 2];

    /// Encodes `values`. `Err` is the index of one that is not finite, or too large for this
    /// encoding.
    fn encode(&self, values: &[f32], codes: &mut [u8], scales: &mut [u8]) -> Result<(), usize>;

    /// Decodes to `values`.
    fn restore(&self, codes: &[u8], scales: &[u8], values: &mut [f32]);

    /// Whether every finite f32 is restored bit for bit.
    fn is_lossless(&self) -> bool {
        false
    }
}

/// Values as f32, f16 or bf16, little-endian; to nearest, ties to even.
pub struct Plain(pub Element);

impl Rounding for Plain {
    fn bytes(&self, values: usize) -> [usize; 2] {
        [values * self.0.bits() as usize / 8, 0]
    }

    fn encode(&self, values: &[f32], codes: &mut [u8], _: &mut [u8]) -> Result<(), usize> {
        match self.0 {
            Element::F16 => (kernels::widest().to_f16)(values, codes),
            element => write_numbers(element, values, codes),
        }
        match first_non_finite(self.0, codes) {
            None => Ok(()),
            Some(index) => Err(index),
        }
    }

    fn restore(&self, codes: &[u8], _: &[u8], values: &mut [f32]) {
        match self.0 {
            Element::F16 => plain::F16.decode(codes, values),
            Element::Bf16 => plain::Bf16.decode(codes, values),
            _ => plain::F32.decode(codes, values),
        }
    }

    fn is_lossless(&self) -> bool {
        self.0 == Element::F32
    }
}

/// Signed bytes, and an f16 scale for each 32 values, as `quantize_row_q8_0_ref` in ggml-quants.c
/// does it: d = max|x| / 127, code = x * (1 / d) rounded half away from zero, all in f32; d is
/// rounded to f16 last.
pub struct Int8Blocks;

impl Int8Blocks {
    /// Types of codes and scales.
    pub const LAYOUT: GridLayout = GridLayout {
        block: Self::BLOCK as u32,
        codes: Element::Int8,
        scales: Element::F16,
        offsets: None,
    };

    const BLOCK: usize = 32;
}

impl Rounding for Int8Blocks {
    fn bytes(&self, values: usize) -> [usize; 2] {
        [values, values / Self::BLOCK * 2]
    }

    fn encode(&self, values: &[f32], codes: &mut [u8], scales: &mut [u8]) -> Result<(), usize> {
        let codes = codes.as_chunks_mut().0;
        let scale_bytes = scales.as_chunks_mut().0;
        let blocks = values.as_chunks::<{ Self::BLOCK }>().0;
        for (block, values) in blocks.iter().enumerate() {
            let mut largest = 0;
            for value in values {
                largest = largest.max(magnitude(*value));
            }
            let d = f32::from_bits(largest) / 127.0;
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            codes[block] = values.map(|value| round_away(value * inverse) as u8);
            scale_bytes[block] = f16::from_f32(d).to_le_bytes();
        }
        let Some(block) = first_non_finite(Element::F16, scales) else {
            return Ok(());
        };
        let first = block * Self::BLOCK;
        let mut worst = first;
        for index in first..first + Self::BLOCK {
            if magnitude(values[index]) > magnitude(values[worst]) {
                worst = index;
            }
        }
        Err(worst)
    }

    fn restore(&self, codes: &[u8], scales: &[u8], values: &mut [f32]) {
        let scales = scales.as_chunks().0;
        let values = values.as_chunks_mut().0;
        let blocks = codes.as_chunks::<{ Self::BLOCK }>().0;
        for (block, codes) in blocks.iter().enumerate() {
            let scale = read_f16(scales[block]);
            values[block] = codes.map(|code| code as i8 as f32 * scale);
        }
    }
}

/// The bits without the sign. They are ordered as the magnitudes, NaN above all.
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// `value.round()` for values that fit a byte. Adding the float below 0.5 and truncating gives the
/// same result, ties included. It needs no call into the C library, so the compiler can vectorize.
fn round_away(value: f32) -> i8 {
    const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;
    (value + BELOW_HALF.copysign(value)) as i32 as i8
}

/// A value that cannot be encoded, with its index in its band.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Misfit {
    /// Index in the band.
    pub index: usize,
    /// The value.
    pub value: f32,
}

/// Decodes a band and rounds it, on all threads of the rayon pool; `codes` and `scales` are as long
/// as `rounding` says.
pub fn round(
    tensor: &BlockTensor,
    band: &Band,
    rounding: &dyn Rounding,
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<ErrorSum, Misfit> {
    let [codes_size, scales_size] = rounding.bytes(CHUNK_VALUES);
    let chunks = band.chunks(tensor.ggml());
    let mut scales = slices(scales, scales_size, chunks.len());
    let out = codes.par_chunks_mut(codes_size).zip(scales.par_iter_mut());
    let chunks = chunks.par_iter().zip(out);
    let sums: Vec<Result<ErrorSum, Misfit>> = chunks
        .map(|(chunk, (codes, scales))| round_chunk(tensor, chunk, rounding, codes, scales))
        .collect();
    let mut total = ErrorSum::default();
    for sum in sums {
        total = total.and(sum?);
    }
    Ok(total)
}

/// Decodes, rounds, restores and measures a chunk, one tile at a time, so that the tile stays in
/// the L1 cache.
fn round_chunk(
    tensor: &BlockTensor,
    chunk: &Chunk,
    rounding: &dyn Rounding,
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<ErrorSum, Misfit> {
    let (mut values, mut restored) = ([0.0; TILE_VALUES], [0.0; TILE_VALUES]);
    let mut lanes = ErrorLanes::default();
    // The error of numbers that f32 cannot hold is relative to the number itself, not to its f32.
    let wide = tensor.format().native_encoding().wide();
    let mut wide_sum = ErrorSum::default();
    let [codes_size, scales_size] = rounding.bytes(TILE_VALUES);
    let mut codes = codes.chunks_mut(codes_size);
    let mut scales = scales.chunks_mut(scales_size.max(1));
    for tile in chunk.tiles(tensor.ggml()) {
        let codes = codes.next().unwrap_or_default();
        let scales = scales.next().unwrap_or_default();
        let (values, restored) = (&mut values[..tile.values], &mut restored[..tile.values]);
        tensor.format().decode(tile.blocks, values);
        if let Err(index) = rounding.encode(values, codes, scales) {
            return Err(Misfit {
                index: tile.first + index,
                value: values[index],
            });
        }
        if !rounding.is_lossless() || wide.is_some() {
            rounding.restore(codes, scales, restored);
        }
        match wide {
            Some(wide) => wide_sum = wide_sum.and(wide.error(tile.blocks, restored)),
            None if rounding.is_lossless() => {}
            None => (kernels::widest().measure)(&mut lanes, values, restored),
        }
    }
    Ok(lanes.sum().and(wide_sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_away_equals_round() {
        for ulps in 0..200_000 {
            // Around every tie and every integer from -125 to 124.5, and over smaller magnitudes.
            let near = (ulps / 400) as f32 / 2.0 - 125.0;
            let value = f32::from_bits(near.to_bits().wrapping_add(ulps % 400).wrapping_sub(200));
            let small = f32::from_bits(ulps * 5000);
            for value in [value, small, -small] {
                if value.abs() < 127.5 {
                    assert_eq!(round_away(value), value.round() as i8, "{value:e}");
                }
            }
        }
    }
}
