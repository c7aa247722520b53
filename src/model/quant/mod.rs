//! Quantized weights: how ggml stores them, what kiln rounds them to, and the inner loops of both.

mod bands;
mod elements;
mod error;
mod formats;
mod fp16;
pub mod kernels;
mod rounding;

pub use bands::{BAND_VALUES, Band, BlockTensor, RowOrder, decode, decode_far, split};
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
    /// Decodes whole blocks, bit-equal to ggml's `dequantize_row_*` of ggml-quants.c. `out` holds
    /// as many values.
    fn decode(&self, blocks: &[u8], out: &mut [f32]);

    /// The same into memory far larger than the caches, and past them where the machine can: what
    /// would be out of them again when it is read need not push out what is in them.
    fn decode_far(&self, blocks: &[u8], out: &mut [f32]) {
        self.decode(blocks, out);
    }

    /// What its values are made of.
    fn native_encoding(&'static self) -> NativeEncoding;
}

/// What the values of a format are made of.
#[derive(Clone, Copy)]
pub enum NativeEncoding {
    /// Each value stands for itself.
    Values(Element),
    /// Each value stands for itself, and a single may not hold it.
    Wide(&'static dyn WideNumbers),
    /// Blocks share a scale.
    Blocks(&'static dyn BlockGrid),
}

impl NativeEncoding {
    /// The numbers, where singles may not hold them.
    fn wide(self) -> Option<&'static dyn WideNumbers> {
        match self {
            NativeEncoding::Wide(numbers) => Some(numbers),
            _ => None,
        }
    }
}

/// A format whose values are `code * scale + offset`, with one scale and offset a block.
pub trait BlockGrid: Sync {
    /// How its three blobs are spelled.
    fn layout(&self) -> GridLayout;

    /// Takes whole blocks apart without rounding anything: decoding is `code * scale + offset` in
    /// f32, bit for bit. Each slice of `out` is just as long as the layout says.
    fn split(&self, blocks: &[u8], out: Split<'_>);
}

/// How codes, scales and offsets are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridLayout {
    /// Values that share a scale.
    pub block: u32,
    /// One a value.
    pub codes: Element,
    /// One a block.
    pub scales: Element,
    /// One a block, where the format has them.
    pub offsets: Option<Element>,
}

impl GridLayout {
    /// Bytes of codes, scales and offsets of `values` values, a whole number of blocks.
    pub fn bytes(&self, values: usize) -> [usize; 3] {
        let per_block =
            |element: Element| values / self.block as usize * (element.bits() as usize / 8);
        [
            values * self.codes.bits() as usize / 8,
            per_block(self.scales),
            self.offsets.map_or(0, per_block),
        ]
    }
}

/// Where the pieces of some blocks go.
pub struct Split<'a> {
    /// Codes; 4-bit ones two a byte, the even element in the low nibble.
    pub codes: &'a mut [u8],
    /// Scales, little-endian.
    pub scales: &'a mut [u8],
    /// Offsets, little-endian; empty where the format has none.
    pub offsets: &'a mut [u8],
}

impl Split<'_> {
    /// The same pieces, to hand on.
    pub fn reborrow(&mut self) -> Split<'_> {
        Split {
            codes: self.codes,
            scales: self.scales,
            offsets: self.offsets,
        }
    }
}
