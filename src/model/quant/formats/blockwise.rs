//! A format told by one function: how a block is taken apart. Decoding puts the pieces together
//! again, so that the two cannot disagree.

use crate::model::quant::elements::{write_codes, write_numbers};
use crate::model::quant::{BlockGrid, GridLayout, NativeEncoding, QuantFormat, Split};
use crate::model::weight::Element;

/// A format of blocks of `LEN` values in `BYTES` bytes, with a scale for each of `RUNS` runs of
/// equal length.
pub(super) struct Blockwise<const BYTES: usize, const LEN: usize, const RUNS: usize> {
    /// What the codes fit in.
    pub(super) codes: Element,
    /// What the scales and offsets fit in: F16 where each is a half of the file, else F32.
    pub(super) numbers: Element,
    /// Whether runs have offsets.
    pub(super) offsets: bool,
    /// Takes a block apart.
    pub(super) parts: fn(&[u8; BYTES]) -> Parts<LEN, RUNS>,
}

/// A block taken apart: `code * scale + offset`, bit for bit what ggml computes. The product must
/// be exact in f32 (11 bits of a half, at most 6 of a sub-scale, at most 7 of a code), so that
/// nothing but the sum may round.
pub(super) struct Parts<const LEN: usize, const RUNS: usize> {
    pub(super) codes: [i8; LEN],
    pub(super) scales: [f32; RUNS],
    /// Zeros where the format has none.
    pub(super) offsets: [f32; RUNS],
}

impl<const LEN: usize, const RUNS: usize> Parts<LEN, RUNS> {
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
        for (block, out) in blocks
            .as_chunks::<BYTES>()
            .0
            .iter()
            .zip(out.as_chunks_mut::<LEN>().0)
        {
            let parts = (self.parts)(block);
            let runs = out
                .chunks_exact_mut(LEN / RUNS)
                .zip(parts.codes.chunks_exact(LEN / RUNS));
            for ((out, codes), (scale, offset)) in runs.zip(parts.scales.iter().zip(parts.offsets))
            {
                let products = out
                    .iter_mut()
                    .zip(codes.iter().map(|code| f32::from(*code) * scale));
                if self.offsets {
                    products.for_each(|(out, product)| *out = product + offset);
                } else {
                    // Adding a zero would turn -0 into 0.
                    products.for_each(|(out, product)| *out = product);
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
            offsets: self.offsets.then_some(self.numbers),
        }
    }

    fn split(&self, blocks: &[u8], out: Split<'_>) {
        let [codes, numbers, _] = self.layout().bytes(LEN);
        let mut offsets = out.offsets.chunks_exact_mut(numbers);
        let pieces = out
            .codes
            .chunks_exact_mut(codes)
            .zip(out.scales.chunks_exact_mut(numbers));
        for (block, (codes, scales)) in blocks.as_chunks::<BYTES>().0.iter().zip(pieces) {
            let parts = (self.parts)(block);
            write_codes(self.codes, &parts.codes, codes);
            write_numbers(self.numbers, &parts.scales, scales);
            if let Some(offsets) = offsets.next() {
                write_numbers(self.numbers, &parts.offsets, offsets);
            }
        }
    }
}
