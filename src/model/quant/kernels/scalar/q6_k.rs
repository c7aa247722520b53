//! Blocks of Q6_K, which `formats/q6_k.rs` describes.

use super::with_values;
use crate::model::quant::fp16::read_f16;

/// Values of a block.
pub(in crate::model::quant) const LEN: usize = 256;
/// Values that share a scale.
pub(in crate::model::quant) const SUB_BLOCK: usize = 16;
/// Bytes of a block.
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

/// Decodes whole blocks.
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
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
