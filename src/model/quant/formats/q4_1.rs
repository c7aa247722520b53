//! Q4_1: 32 values `d * q + m`, d and m f16. `block_q4_1` of ggml-common.h.

use super::bits::pair_nibbles;
use crate::model::quant::kernels::scalar::q4_1::{BYTES, LEN};
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split, kernels};
use crate::model::weight::Element;

/// The format Q4_1.
pub struct Q4_1;

impl QuantFormat for Q4_1 {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().cached.q4_1)(blocks, out);
    }

    fn decode_streaming(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().streaming.q4_1)(blocks, out);
    }

    fn native_encoding(&self) -> NativeEncoding {
        NativeEncoding::Blocks(&Q4_1)
    }
}

impl BlockGrid for Q4_1 {
    fn layout(&self) -> GridLayout {
        GridLayout {
            block: LEN as u32,
            codes: Element::Uint4,
            scales: Element::F16,
            offsets: Some(Element::F16),
        }
    }

    fn split(&self, blocks: &[u8], out: Split<'_>) {
        let blocks = blocks.as_chunks::<BYTES>().0;
        let pairs = &mut out.codes.as_chunks_mut().0[..blocks.len()];
        let scales = &mut out.scales.as_chunks_mut().0[..blocks.len()];
        let offsets = &mut out.offsets.as_chunks_mut().0[..blocks.len()];
        for (i, [d0, d1, m0, m1, codes @ ..]) in blocks.iter().enumerate() {
            pairs[i] = pair_nibbles(codes);
            scales[i] = [*d0, *d1];
            offsets[i] = [*m0, *m1];
        }
    }
}
