//! Quantized weights: ggml's formats, kiln's encodings, and the inner loops of both.

mod bands;
mod elements;
mod error;
mod formats;
mod fp16;
pub mod kernels;
mod rounding;

pub use bands::{
    BAND_VALUES, Band, BlockTensor, RowOrder, TensorFacts, decode, decode_streaming, split,
};
pub use elements::{number_at, write_numbers};
pub use error::{ErrorLanes, ErrorSum};
pub use formats::{GgmlType, Q4_0, Q4_1, Q6K, Q8_0, WideNumbers, first_non_finite};
pub use rounding::{
    Int8Blocks, Metric, Misfit, Plain, Positive, Rounding, RowLayout, RowPieces, RowRounding,
    RowSum, recombine, round, round_rows,
};

use crate::model::weight::Element;

/// A storage format of ggml that kiln decodes.
pub trait QuantFormat: Sync {
    /// Decodes whole blocks, bit-equal to ggml's `dequantize_row_*` of ggml-quants.c. `out` has
    /// their number of values.
    fn decode(&self, blocks: &[u8], out: &mut [f32]);

    /// The same with non-temporal stores where the processor has them. For outputs much larger than
    /// the caches: values that would be evicted before they are read do not evict others.
    fn decode_streaming(&self, blocks: &[u8], out: &mut [f32]) {
        self.decode(blocks, out);
    }

    /// The encoding of its values.
    fn native_encoding(&'static self) -> NativeEncoding;
}

/// The encoding of the values of a format.
#[derive(Clone, Copy)]
pub enum NativeEncoding {
    /// Values without blocks.
    Values(Element),
    /// Values without blocks that f32 may not hold exactly.
    Wide(&'static dyn WideNumbers),
    /// Blocks share a scale.
    Blocks(&'static dyn BlockGrid),
}

impl NativeEncoding {
    /// The numbers, if f32 may not hold them exactly.
    fn wide(self) -> Option<&'static dyn WideNumbers> {
        match self {
            NativeEncoding::Wide(numbers) => Some(numbers),
            _ => None,
        }
    }
}

/// A format whose values are `code * scale + offset`, with one scale and offset a block.
pub trait BlockGrid: Sync {
    /// The layout of its three blobs.
    fn layout(&self) -> GridLayout;

    /// Splits whole blocks without rounding: `code * scale + offset` in f32 is the decoded value,
    /// bit for bit. Each slice of `out` has the length of [`GridLayout::bytes`].
    fn split(&self, blocks: &[u8], out: Split<'_>);
}

/// The types of codes, scales and offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridLayout {
    /// Values that share a scale.
    pub block: u32,
    /// Type of the codes, one per value.
    pub codes: Element,
    /// Type of the scales, one per block.
    pub scales: Element,
    /// Type of the offsets, one per block; `None` if the format has none.
    pub offsets: Option<Element>,
}

impl GridLayout {
    /// Bytes of codes, scales and offsets of whole blocks with `values` values.
    pub fn bytes(&self, values: usize) -> [usize; 3] {
        let blocks = values / self.block as usize;
        let offset_bytes = match self.offsets {
            Some(offsets) => offsets.bits() as usize / 8,
            None => 0,
        };
        [
            values * self.codes.bits() as usize / 8,
            blocks * (self.scales.bits() as usize / 8),
            blocks * offset_bytes,
        ]
    }
}

/// Output buffers of the codes, scales and offsets of some blocks.
pub struct Split<'a> {
    /// Codes; two 4-bit codes per byte, the even element in the low nibble.
    pub codes: &'a mut [u8],
    /// Scales, little-endian.
    pub scales: &'a mut [u8],
    /// Offsets, little-endian; empty if the format has none.
    pub offsets: &'a mut [u8],
}

impl<'a> Split<'a> {
    /// Splits the buffers into `count` groups of `codes`, `scales` and `offsets` bytes each.
    fn split(self, [codes, scales, offsets]: [usize; 3], count: usize) -> Vec<Split<'a>> {
        let codes = self.codes.chunks_mut(codes);
        let scales = self.scales.chunks_mut(scales);
        let offsets = bands::slices(self.offsets, offsets, count);
        let mut groups = Vec::with_capacity(count);
        for ((codes, scales), offsets) in codes.zip(scales).zip(offsets) {
            groups.push(Split {
                codes,
                scales,
                offsets,
            });
        }
        groups
    }

    /// Reborrows the buffers.
    pub fn reborrow(&mut self) -> Split<'_> {
        Split {
            codes: self.codes,
            scales: self.scales,
            offsets: self.offsets,
        }
    }
}
