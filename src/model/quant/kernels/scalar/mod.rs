//! The reference kernels: every other set must yield the same bits. One file per format, with the
//! size of its blocks.

pub(in crate::model::quant) mod q4_0;
pub(in crate::model::quant) mod q4_1;
pub(in crate::model::quant) mod q6_k;
pub(in crate::model::quant) mod q8_0;

use super::{Decoders, Kernels};
use crate::model::quant::error;
use crate::model::quant::fp16::{from_f32, read_f16};

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
    cached: DECODERS,
    streaming: DECODERS,
    from_f16,
    to_f16,
    measure: error::measure,
};

const DECODERS: Decoders = Decoders {
    q4_0: q4_0::decode,
    q4_1: q4_1::decode,
    q8_0: q8_0::decode,
    q6_k: q6_k::decode,
};

/// Each block of `BYTES` bytes with its `LEN` values in `out`.
pub(in crate::model::quant) fn with_values<'a, const BYTES: usize, const LEN: usize>(
    blocks: &'a [u8],
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [f32; LEN])> {
    let values = out.as_chunks_mut().0;
    blocks.as_chunks().0.iter().zip(values)
}

pub(super) fn from_f16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = read_f16(*bytes);
    }
}

pub(super) fn to_f16(values: &[f32], out: &mut [u8]) {
    for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
        *out = from_f32(*value).to_le_bytes();
    }
}
