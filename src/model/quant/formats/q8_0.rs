//! Q8_0: 32 values `d * q`, d f16, q a signed byte. `block_q8_0` of ggml-common.h.

use crate::model::quant::kernels::scalar::q8_0::{BYTES, LEN};
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split, kernels};
use crate::model::weight::Element;

/// The format Q8_0.
pub struct Q8_0;

impl QuantFormat for Q8_0 {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().cached.q8_0)(blocks, out);
    }

    fn decode_streaming(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().streaming.q8_0)(blocks, out);
    }

    fn native_encoding(&self) -> NativeEncoding {
        NativeEncoding::Blocks(&Q8_0)
    }
}

impl BlockGrid for Q8_0 {
    fn layout(&self) -> GridLayout {
        GridLayout {
            block: LEN as u32,
            codes: Element::Int8,
            scales: Element::F16,
            offsets: None,
        }
    }

    fn split(&self, blocks: &[u8], out: Split<'_>) {
        let blocks = blocks.as_chunks::<BYTES>().0;
        let out_codes = &mut out.codes.as_chunks_mut().0[..blocks.len()];
        let scales = &mut out.scales.as_chunks_mut().0[..blocks.len()];
        for (i, [d0, d1, codes @ ..]) in blocks.iter().enumerate() {
            out_codes[i] = *codes;
            scales[i] = [*d0, *d1];
        }
    }
}
