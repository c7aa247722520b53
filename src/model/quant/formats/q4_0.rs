//! Q4_0: 32 values `d * (q - 8)`, d f16 of either sign. `block_q4_0` of ggml-common.h.

use super::bits::pair_nibbles;
use crate::model::quant::kernels::scalar::q4_0::{BYTES, LEN};
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split, kernels};
use crate::model::weight::Element;

/// The format Q4_0.
pub struct Q4_0;

impl QuantFormat for Q4_0 {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().cached.q4_0)(blocks, out);
    }

    fn decode_streaming(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().streaming.q4_0)(blocks, out);
    }

    fn native_encoding(&self) -> NativeEncoding {
        NativeEncoding::Blocks(&Q4_0)
    }
}

impl BlockGrid for Q4_0 {
    fn layout(&self) -> GridLayout {
        GridLayout {
            block: LEN as u32,
            codes: Element::Int4,
            scales: Element::F16,
            offsets: None,
        }
    }

    fn split(&self, blocks: &[u8], out: Split<'_>) {
        let blocks = blocks.as_chunks::<BYTES>().0;
        let pairs = &mut out.codes.as_chunks_mut().0[..blocks.len()];
        let scales = &mut out.scales.as_chunks_mut().0[..blocks.len()];
        for (i, [d0, d1, codes @ ..]) in blocks.iter().enumerate() {
            pairs[i] = pair_nibbles(codes);
            scales[i] = [*d0, *d1];
        }
        // In 4-bit two's complement, q - 8 is q with its top bit flipped. Inside of the loop above,
        // this would be three times slower.
        for pair in out.codes {
            *pair ^= 0x88;
        }
    }
}
