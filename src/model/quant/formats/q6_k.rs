//! Q6_K: 256 values `d * sc * (q - 32)`, d f16, sc a signed byte for each 16 values.
//! `block_q6_K` of ggml-common.h.

use crate::model::quant::kernels::scalar::q6_k::{
    BYTES, LEN, SUB_BLOCK, fields, scale_of, unpack_codes,
};
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split, kernels};
use crate::model::weight::Element;

/// The format Q6_K.
pub struct Q6K;

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
