//! The definition: what every wider kernel must give, bit for bit.

use super::{Decoders, Kernels};
use crate::model::quant::error;
use crate::model::quant::formats::{q4_0, q4_1, q6_k, q8_0};
use crate::model::quant::fp16::{from_f32, to_f32};

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
    near: DECODERS,
    far: DECODERS,
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

pub(super) fn from_f16(halves: &[u8], out: &mut [f32]) {
    halves
        .as_chunks()
        .0
        .iter()
        .zip(out)
        .for_each(|(half, out)| *out = to_f32(u16::from_le_bytes(*half)));
}

pub(super) fn to_f16(values: &[f32], out: &mut [u8]) {
    out.as_chunks_mut()
        .0
        .iter_mut()
        .zip(values)
        .for_each(|(out, value)| *out = from_f32(*value).to_le_bytes());
}
