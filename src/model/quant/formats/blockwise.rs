//! A format that is defined by one function, which unpacks a block. Decoding and splitting both use
//! it, so they cannot disagree.

use crate::model::quant::elements::{write_codes, write_numbers};
use crate::model::quant::kernels::scalar::with_values;
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split};
use crate::model::weight::Element;

/// A format with blocks of `LEN` values in `BYTES` bytes, and a scale for each of `RUNS` runs of
/// equal length.
pub(super) struct Blockwise<const BYTES: usize, const LEN: usize, const RUNS: usize> {
    /// Type of the codes after splitting.
    pub(super) codes: Element,
    /// Type of scales and offsets after splitting: F16 if the file holds each as f16, else F32.
    pub(super) numbers: Element,
    /// Whether runs have offsets.
    pub(super) offsets: bool,
    /// Unpacks a block.
    pub(super) parts: fn(&[u8; BYTES]) -> Parts<LEN, RUNS>,
}

/// An unpacked block. `code * scale + offset` equals what ggml computes, bit for bit. The product
/// must be exact in f32 (11 bits of an f16, at most 6 of a sub-scale, at most 7 of a code), so that
/// only the sum may round.
pub(super) struct Parts<const LEN: usize, const RUNS: usize> {
    pub(super) codes: [i8; LEN],
    pub(super) scales: [f32; RUNS],
    /// Zeros if the format has none.
    pub(super) offsets: [f32; RUNS],
}

impl<const LEN: usize, const RUNS: usize> Parts<LEN, RUNS> {
    /// Without offsets.
    pub(super) fn scaled(codes: [i8; LEN], scales: [f32; RUNS]) -> Self {
        Parts {
            codes,
            scales,
            offsets: [0.0; RUNS],
        }
    }
}

impl<const BYTES: usize, const LEN: usize, const RUNS: usize> QuantFormat
    for Blockwise<BYTES, LEN, RUNS>
{
    fn decode(&self, blocks: &[u8], out: &mut [f32]) {
        for (block, out) in with_values::<BYTES, LEN>(blocks, out) {
            let parts = (self.parts)(block);
            for (run, out) in out.chunks_exact_mut(LEN / RUNS).enumerate() {
                let codes = &parts.codes[run * (LEN / RUNS)..][..LEN / RUNS];
                let (scale, offset) = (parts.scales[run], parts.offsets[run]);
                for (out, code) in out.iter_mut().zip(codes) {
                    let product = f32::from(*code) * scale;
                    // Adding a zero would turn -0 into 0.
                    *out = if self.offsets {
                        product + offset
                    } else {
                        product
                    };
                }
            }
        }
    }

    fn native_encoding(&'static self) -> NativeEncoding {
        NativeEncoding::Blocks(self)
    }
}

impl<const BYTES: usize, const LEN: usize, const RUNS: usize> BlockGrid
    for Blockwise<BYTES, LEN, RUNS>
{
    fn layout(&self) -> GridLayout {
        GridLayout {
            block: (LEN / RUNS) as u32,
            codes: self.codes,
            scales: self.numbers,
            offsets: if self.offsets {
                Some(self.numbers)
            } else {
                None
            },
        }
    }

    fn split(&self, blocks: &[u8], out: Split<'_>) {
        let [codes_size, numbers_size, _] = self.layout().bytes(LEN);
        let codes = out.codes.chunks_exact_mut(codes_size);
        let scales = out.scales.chunks_exact_mut(numbers_size);
        let mut offsets = out.offsets.chunks_exact_mut(numbers_size);
        let blocks = blocks.as_chunks::<BYTES>().0.iter();
        for ((block, codes), scales) in blocks.zip(codes).zip(scales) {
            let parts = (self.parts)(block);
            write_codes(self.codes, &parts.codes, codes);
            write_numbers(self.numbers, &parts.scales, scales);
            if let Some(offsets) = offsets.next() {
                write_numbers(self.numbers, &parts.offsets, offsets);
            }
        }
    }
}
