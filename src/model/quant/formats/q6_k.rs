//! Q6_K: 256 values `d * sc * (q - 32)`, d a half, sc a signed byte for each 16 values.
//! `block_q6_K` of ggml-common.h.

use crate::model::quant::fp16::half;
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split, kernels};
use crate::model::weight::Element;

/// The format Q6_K.
pub struct Q6K;

pub(in crate::model::quant) const LEN: usize = 256;
const SUB_BLOCK: usize = 16;
pub(in crate::model::quant) const BYTES: usize = 210;
const _: () = assert!(BYTES == LEN / 2 + LEN / 4 + LEN / SUB_BLOCK + 2);

/// A block: the low four bits of the codes, their high two bits, sub-scales, d.
#[inline(always)]
pub(in crate::model::quant) fn pieces(block: &[u8; BYTES]) -> (&[u8], &[u8], &[u8], f32) {
    let (low, rest) = block.split_at(LEN / 2);
    let (high, rest) = rest.split_at(LEN / 4);
    let (sub_scales, d) = rest.split_at(LEN / SUB_BLOCK);
    (low, high, sub_scales, half([d[0], d[1]]))
}

/// The codes q - 32, in order. Each half of the block holds four runs of 32 side by side in its
/// bits.
#[inline(always)]
pub(in crate::model::quant) fn codes(low: &[u8], high: &[u8]) -> [i8; LEN] {
    let mut codes = [0; LEN];
    let halves = low.chunks_exact(64).zip(high.chunks_exact(32));
    for (out, (low, high)) in codes.chunks_exact_mut(128).zip(halves) {
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
pub(in crate::model::quant) fn scale(d: f32, sub_scale: u8) -> f32 {
    d * sub_scale as i8 as f32
}

/// Decodes one value after the other.
pub(in crate::model::quant) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, out) in blocks
        .as_chunks::<BYTES>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<LEN>().0)
    {
        let (low, high, sub_scales, d) = pieces(block);
        let codes = codes(low, high);
        let runs = out
            .as_chunks_mut::<SUB_BLOCK>()
            .0
            .iter_mut()
            .zip(codes.as_chunks::<SUB_BLOCK>().0);
        for ((out, codes), sub_scale) in runs.zip(sub_scales) {
            let scale = scale(d, *sub_scale);
            *out = codes.map(|code| scale * code as f32);
        }
    }
}

impl QuantFormat for Q6K {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().near.q6_k)(blocks, out);
    }

    fn decode_far(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().far.q6_k)(blocks, out);
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
        let pairs = out
            .codes
            .as_chunks_mut::<LEN>()
            .0
            .iter_mut()
            .zip(out.scales.as_chunks_mut::<64>().0);
        for (block, (out, scales)) in blocks.as_chunks::<BYTES>().0.iter().zip(pairs) {
            let (low, high, sub_scales, d) = pieces(block);
            *out = codes(low, high).map(|code| code as u8);
            for (bytes, sub_scale) in scales.as_chunks_mut::<4>().0.iter_mut().zip(sub_scales) {
                *bytes = scale(d, *sub_scale).to_le_bytes();
            }
        }
    }
}
