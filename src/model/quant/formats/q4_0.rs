//! Q4_0: 32 values `d * (q - 8)`, d a half of either sign. `block_q4_0` of ggml-common.h.

use super::bits::pair_nibbles;
use crate::model::quant::fp16::half;
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split, kernels};
use crate::model::weight::Element;

/// The format Q4_0.
pub struct Q4_0;

const LEN: usize = 32;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + LEN / 2);

/// Decodes one value after the other.
pub(in crate::model::quant) fn decode(blocks: &[u8], out: &mut [f32]) {
    for ([d0, d1, codes @ ..], out) in blocks
        .as_chunks::<BYTES>()
        .0
        .iter()
        .zip(out.as_chunks_mut::<LEN>().0)
    {
        let d = half([*d0, *d1]);
        for (j, code) in codes.iter().enumerate() {
            out[j] = ((code & 0x0f) as i32 - 8) as f32 * d;
            out[j + 16] = ((code >> 4) as i32 - 8) as f32 * d;
        }
    }
}

impl QuantFormat for Q4_0 {
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().near.q4_0)(blocks, out);
    }

    fn decode_far(&self, blocks: &[u8], out: &mut [f32]) {
        (kernels::widest().far.q4_0)(blocks, out);
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
        let pieces = out
            .codes
            .as_chunks_mut::<16>()
            .0
            .iter_mut()
            .zip(out.scales.as_chunks_mut::<2>().0);
        for ([d0, d1, codes @ ..], (out, scale)) in blocks.as_chunks::<BYTES>().0.iter().zip(pieces)
        {
            *out = pair_nibbles(codes);
            *scale = [*d0, *d1];
        }
        // In two's complement of four bits, q - 8 is q with its top bit flipped. In the loop above,
        // it would be three times slower.
        out.codes.iter_mut().for_each(|pair| *pair ^= 0x88);
    }
}
