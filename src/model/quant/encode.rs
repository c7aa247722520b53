//! Rounding f32 values to halves, bfloat16 and 8-bit blocks. Values are finite.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::first_non_finite;
use crate::model::facts::Element;

/// Halves, little-endian; to nearest, ties to even. `Err` is the index of the first value that is too large for one.
pub fn encode_f16(values: &[f32], out: &mut [u8]) -> Result<(), usize> {
    let mut run = [f16::ZERO; 256];
    for (values, out) in values.chunks(run.len()).zip(out.as_chunks_mut::<2>().0.chunks_mut(run.len())) {
        let run = &mut run[..values.len()];
        run.convert_from_f32_slice(values);
        out.iter_mut().zip(run).for_each(|(out, half)| *out = half.to_le_bytes());
    }
    first_non_finite(Element::F16, out).map_or(Ok(()), Err)
}

/// bfloat16, little-endian; to nearest, ties to even. `Err` is the index of the first value that is too large for one.
pub fn encode_bf16(values: &[f32], out: &mut [u8]) -> Result<(), usize> {
    for (value, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
        *out = bf16::from_f32(*value).to_le_bytes();
    }
    first_non_finite(Element::Bf16, out).map_or(Ok(()), Err)
}

/// Values that share a scale in `int8-block`.
const BLOCK: usize = 32;

/// Signed bytes and a half as scale for each 32 values, by the rule of `quantize_row_q8_0_ref` in ggml-quants.c:
/// d = max|x| / 127, code = x * (1 / d) rounded half away from zero, all in f32; d is rounded to a half last.
/// `Err` is the index of the first block whose scale is too large for a half.
pub fn encode_int8_blocks(values: &[f32], codes: &mut [u8], scales: &mut [u8]) -> Result<(), usize> {
    let out = codes.as_chunks_mut::<BLOCK>().0.iter_mut().zip(scales.as_chunks_mut::<2>().0);
    for (values, (codes, scale)) in values.as_chunks::<BLOCK>().0.iter().zip(out) {
        let d = values.iter().fold(0.0, |max: f32, value| max.max(value.abs())) / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        *codes = values.map(|value| (value * inverse).round() as i8 as u8);
        *scale = f16::from_f32(d).to_le_bytes();
    }
    first_non_finite(Element::F16, scales).map_or(Ok(()), Err)
}
