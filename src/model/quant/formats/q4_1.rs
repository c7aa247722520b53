//! Q4_1: 32 values `d * q + m`, d and m halves. `block_q4_1` of ggml-common.h.

use super::bits::pair_nibbles;
use crate::model::quant::fp16::half;
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split, kernels};
use crate::model::weight::Element;

/// The format Q4_1.
pub struct Q4_1;

const LEN: usize = 32;
const BYTES: usize = 20;
const _: () = assert!(BYTES == 2 + 2 + LEN / 2);

/// Decodes one value after the other.
pub(in crate::model::quant) fn decode(blocks: &[u8], out: &mut [f32]) {
    for ([d0, d1, m0, m1, codes @ ..], out) in blocks
        .as_chunks::<BYTES>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<LEN>().0)
    {
        let (d, m) = (half([*d0, *d1]), half([*m0, *m1]));
        for (j, code) in codes.iter().enumerate() {
            // The product has 11 + 4 significant bits, so it is exact and only the sum rounds: with
            // or without FMA.
            out[j] = (code & 0x0f) as f32 * d + m;
            out[j + 16] = (code >> 4) as f32 * d + m;
        }
    }
}

impl QuantFormat for Q4_1 {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().near.q4_1)(blocks, out);
    }

    fn decode_far(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().far.q4_1)(blocks, out);
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
        let scales_offsets = out
            .scales
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(out.offsets.as_chunks_mut::<2>().0);
        let pieces = out
            .codes
            .as_chunks_mut::<16>()
            .0
            .iter_mut()
            .zip(scales_offsets);
        for ([d0, d1, m0, m1, codes @ ..], (out, (scale, offset))) in
            blocks.as_chunks::<BYTES>().0.iter().zip(pieces)
        {
            *out = pair_nibbles(codes);
            *scale = [*d0, *d1];
            *offset = [*m0, *m1];
        }
    }
}
