//! Ways to round values to fewer bits, and how far each takes them from their source.

use half::f16;
use rayon::prelude::*;

use crate::model::quant::bands::{RUN_VALUES, Run, TILE_VALUES, slices};
use crate::model::quant::elements::write_numbers;
use crate::model::quant::formats::plain;
use crate::model::quant::fp16::half;
use crate::model::quant::{
    Band, BlockTensor, ErrorLanes, ErrorSum, GridLayout, QuantFormat, first_non_finite, kernels,
};
use crate::model::weight::Element;

/// A way to spell values with fewer bits: codes, or the values themselves, and scales where it has
/// them.
pub trait Rounding: Sync {
    /// Bytes of codes and scales of `values` values.
    fn bytes(&self, values: usize) -> [usize; 2];

    /// Spells `values`. `Err` is the index of one that is not finite, or too large for this
    /// spelling.
    fn encode(&self, values: &[f32], codes: &mut [u8], scales: &mut [u8]) -> Result<(), usize>;

    /// The values that were spelled.
    fn restore(&self, codes: &[u8], scales: &[u8], values: &mut [f32]);

    /// Whether every f32 survives.
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
        first_non_finite(self.0, codes).map_or(Ok(()), Err)
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

/// Signed bytes, and a half as scale for each 32 values, by the rule of `quantize_row_q8_0_ref` in
/// ggml-quants.c: d = max|x| / 127, code = x * (1 / d) rounded half away from zero, all in f32; d
/// is rounded to a half last.
pub struct Int8Blocks;

impl Int8Blocks {
    /// How codes and scales are spelled.
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
        let out = codes
            .as_chunks_mut()
            .0
            .iter_mut()
            .zip(scales.as_chunks_mut::<2>().0);
        for (values, (codes, scale)) in values.as_chunks::<{ Self::BLOCK }>().0.iter().zip(out) {
            // Without its sign, a float's bits are in the order of its magnitude, NaN above all.
            let largest = values.iter().map(magnitude).fold(0, u32::max);
            let d = f32::from_bits(largest) / 127.0;
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            *codes = values.map(|value| round_away(value * inverse) as u8);
            *scale = f16::from_f32(d).to_le_bytes();
        }
        let Some(block) = first_non_finite(Element::F16, scales) else {
            return Ok(());
        };
        let block = block * Self::BLOCK..(block + 1) * Self::BLOCK;
        // Backwards, because of equals the last one wins: the first is named.
        Err(block
            .rev()
            .max_by_key(|index| magnitude(&values[*index]))
            .unwrap_or(0))
    }

    fn restore(&self, codes: &[u8], scales: &[u8], values: &mut [f32]) {
        let blocks = codes
            .as_chunks::<{ Self::BLOCK }>()
            .0
            .iter()
            .zip(scales.as_chunks::<2>().0);
        for (out, (codes, scale)) in values.as_chunks_mut().0.iter_mut().zip(blocks) {
            let scale = half(*scale);
            *out = codes.map(|code| code as i8 as f32 * scale);
        }
    }
}

fn magnitude(value: &f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// `value.round()` for values that fit a byte. Adding the float below a half and cutting is the
/// same, ties and all, and needs no call into the C library, which would keep the compiler from
/// taking many at once.
fn round_away(value: f32) -> i8 {
    const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;
    (value + BELOW_HALF.copysign(value)) as i32 as i8
}

/// A value that cannot be spelled, and where it stands among those of its band.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Misfit {
    /// Its index.
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
    let [codes_size, scales_size] = rounding.bytes(RUN_VALUES);
    let runs = band.runs(tensor.ggml());
    let mut scales = slices(scales, scales_size, runs.len());
    let out = codes.par_chunks_mut(codes_size).zip(scales.par_iter_mut());
    let sums: Vec<Result<ErrorSum, Misfit>> = runs
        .par_iter()
        .zip(out)
        .map(|(run, (codes, scales))| round_run(tensor, run, rounding, codes, scales))
        .collect();
    sums.into_iter()
        .try_fold(ErrorSum::default(), |all, sum| Ok(all.and(sum?)))
}

/// One run, a tile at a time: decoded, spelled, restored and measured while it lies in the nearest
/// cache.
fn round_run(
    tensor: &BlockTensor,
    run: &Run,
    rounding: &dyn Rounding,
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<ErrorSum, Misfit> {
    let (mut values, mut restored) = ([0.0; TILE_VALUES], [0.0; TILE_VALUES]);
    let mut lanes = ErrorLanes::default();
    // Of numbers that no single holds the error is that of the number itself.
    let (wide, mut beyond) = (
        tensor.format().native_encoding().wide(),
        ErrorSum::default(),
    );
    let [codes_size, scales_size] = rounding.bytes(TILE_VALUES);
    let (mut codes, mut scales) = (
        codes.chunks_mut(codes_size),
        scales.chunks_mut(scales_size.max(1)),
    );
    for tile in run.tiles(tensor.ggml()) {
        let (codes, scales) = (
            codes.next().unwrap_or_default(),
            scales.next().unwrap_or_default(),
        );
        let (values, restored) = (&mut values[..tile.values], &mut restored[..tile.values]);
        tensor.format().decode(tile.blocks, values);
        let misfit = |index: usize| Misfit {
            index: tile.first + index,
            value: values[index],
        };
        rounding.encode(values, codes, scales).map_err(misfit)?;
        if !rounding.is_lossless() || wide.is_some() {
            rounding.restore(codes, scales, restored);
        }
        match wide {
            Some(wide) => beyond = beyond.and(wide.error(tile.blocks, restored)),
            None if rounding.is_lossless() => {}
            None => (kernels::widest().measure)(&mut lanes, values, restored),
        }
    }
    Ok(lanes.sum().and(beyond))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_by_hand_is_rounding() {
        for ulps in 0..200_000 {
            // Around every tie and every whole number from -125 to 124.5, and a walk over smaller
            // magnitudes.
            let near = (ulps / 400) as f32 / 2.0 - 125.0;
            let value = f32::from_bits(near.to_bits().wrapping_add(ulps % 400).wrapping_sub(200));
            let small = f32::from_bits(ulps * 5000);
            for value in [value, small, -small]
                .into_iter()
                .filter(|value| value.abs() < 127.5)
            {
                assert_eq!(round_away(value), value.round() as i8, "{value:e}");
            }
        }
    }
}
