//! Q8_0: 32 values `d * q`, d a half, q a signed byte. `block_q8_0` of ggml-common.h.

use crate::model::quant::fp16::half;
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split, kernels};
use crate::model::weight::Element;

/// The format Q8_0.
pub struct Q8_0;

const LEN: usize = 32;
const BYTES: usize = 34;
const _: () = assert!(BYTES == 2 + LEN);

/// Decodes one value after the other.
pub(in crate::model::quant) fn decode(blocks: &[u8], out: &mut [f32]) {
    for ([d0, d1, codes @ ..], out) in blocks
        .as_chunks::<BYTES>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<LEN>().0)
    {
        let d = half([*d0, *d1]);
        *out = codes.map(|code| code as i8 as f32 * d);
    }
}

impl QuantFormat for Q8_0 {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().near.q8_0)(blocks, out);
    }

    fn decode_far(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().far.q8_0)(blocks, out);
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
        let pieces = out
            .codes
            .as_chunks_mut::<LEN>()
            .0
            .iter_mut()
            .zip(out.scales.as_chunks_mut::<2>().0);
        for ([d0, d1, codes @ ..], (out, scale)) in blocks.as_chunks::<BYTES>().0.iter().zip(pieces)
        {
            *out = *codes;
            *scale = [*d0, *d1];
        }
    }
}
