//! Q6_K: 256 values `d * sc * (q - 32)`, d f16, sc a signed byte for each 16 values.
//! `block_q6_K` of ggml-common.h.

use super::bits::with_values;
use crate::model::quant::fp16::read_f16;
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split, kernels};
use crate::model::weight::Element;

/// The format Q6_K.
pub struct Q6K;

pub(in crate::model::quant) const LEN: usize = 256;
const SUB_BLOCK: usize = 16;
pub(in crate::model::quant) const BYTES: usize = 210;
const _: () = assert!(BYTES == LEN / 2 + LEN / 4 + LEN / SUB_BLOCK + 2);

/// The fields of a block: the low four bits of the codes, their high two bits, sub-scales, d.
#[inline(always)]
pub(in crate::model::quant) fn fields(block: &[u8; BYTES]) -> (&[u8], &[u8], &[u8], f32) {
    let (low, rest) = block.split_at(LEN / 2);
    let (high, rest) = rest.split_at(LEN / 4);
    let (sub_scales, d) = rest.split_at(LEN / SUB_BLOCK);
    (low, high, sub_scales, read_f16([d[0], d[1]]))
}

/// The codes q - 32, in order. In each half of the block, byte j packs the codes j, j + 32, j + 64
/// and j + 96.
#[inline(always)]
pub(in crate::model::quant) fn unpack_codes(low: &[u8], high: &[u8]) -> [i8; LEN] {
    let mut codes = [0; LEN];
    let (low, high) = (low.chunks_exact(64), high.chunks_exact(32));
    for ((out, low), high) in codes.chunks_exact_mut(128).zip(low).zip(high) {
        for j in 0..32 {
            out[j] = (low[j] & 0x0f | (high[j] & 0x03) << 4) as i8 - 32;
            out[j + 32] = (low[j + 32] & 0x0f | (high[j] & 0x0c) << 2) as i8 - 32;
            out[j + 64] = (low[j] >> 4 | (high[j] & 0x30)) as i8 - 32;
            out[j + 96] = (low[j + 32] >> 4 | (high[j] & 0xc0) >> 2) as i8 - 32;
        }
    }
    codes
}

/// The scale of a sub-block: 11 significant bits times 8, exact in f32, so that `(d * sc) * q` is
/// ggml's `d * sc * q`.
pub(in crate::model::quant) fn scale_of(d: f32, sub_scale: u8) -> f32 {
    d * sub_scale as i8 as f32
}

/// Decodes whole blocks without SIMD instructions.
pub(in crate::model::quant) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, out) in with_values::<BYTES, LEN>(blocks, out) {
        let (low, high, sub_scales, d) = fields(block);
        let codes = unpack_codes(low, high);
        let codes = codes.as_chunks::<SUB_BLOCK>().0;
        for (i, out) in out.as_chunks_mut::<SUB_BLOCK>().0.iter_mut().enumerate() {
            let scale = scale_of(d, sub_scales[i]);
            *out = codes[i].map(|code| scale * code as f32);
        }
    }
}

impl QuantFormat for Q6K {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().cached.q6_k)(blocks, out);
    }

    fn decode_streaming(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().streaming.q6_k)(blocks, out);
    }

    fn native_encoding(&self) -> NativeEncoding {
        NativeEncoding::Blocks(&Q6K)
    }
}

impl BlockGrid for Q6K {
    fn layout(&self) -> GridLayout {
        GridLayout {
            block: SUB_BLOCK as u32,
            codes: Element::Int8,
            scales: Element::F32,
            offsets: None,
        }
    }

    fn split(&self, blocks: &[u8], out: Split<'_>) {
        let codes = out.codes.as_chunks_mut::<LEN>().0;
        let scales = out.scales.as_chunks_mut::<{ 4 * LEN / SUB_BLOCK }>().0;
        for (i, block) in blocks.as_chunks::<BYTES>().0.iter().enumerate() {
            let (low, high, sub_scales, d) = fields(block);
            codes[i] = unpack_codes(low, high).map(|code| code as u8);
            for (scale, sub_scale) in scales[i].as_chunks_mut().0.iter_mut().zip(sub_scales) {
                *scale = scale_of(d, *sub_scale).to_le_bytes();
            }
        }
    }
}
