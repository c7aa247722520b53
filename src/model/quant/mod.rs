//! ggml's quantized formats: decoded bit for bit as ggml does, and split into codes, scales and offsets. One file a format.

mod bands;
mod error;
mod metric;
mod plain;
mod positive;
mod q4_0;
mod q4_1;
mod q6_k;
mod q8_0;
mod round;
mod rows;
mod search;
mod types;
mod wide;

pub use bands::{BAND_VALUES, Band, BlockTensor, RowOrder, decode, split};
pub use error::ErrorSum;
pub use metric::Metric;
pub use plain::first_non_finite;
pub use positive::{Positive, recombine};
pub use q4_0::Q4_0;
pub use q4_1::Q4_1;
pub use q6_k::Q6K;
pub use q8_0::Q8_0;
pub use round::{Int8Blocks, Misfit, Plain, Rounding, round};
pub use rows::{RowLayout, RowPieces, RowRounding, RowSum, round_rows};
pub use types::GgmlType;

use crate::model::facts::Element;

/// A storage format of ggml that kiln decodes.
pub trait QuantFormat: Sync {
    /// Decodes whole blocks, bit-equal to ggml's `dequantize_row_*` of ggml-quants.c. `out` holds as many values.
    fn decode(&self, blocks: &[u8], out: &mut [f32]);

    /// What its values are made of.
    fn spelling(&self) -> Spelling;
}

/// What the values of a format are made of.
#[derive(Clone, Copy)]
pub enum Spelling {
    /// Each value stands for itself.
    Values(Element),
    /// Blocks share a scale.
    Blocks(&'static dyn BlockGrid),
}

/// A format whose values are `code * scale + offset`, with one scale and offset a block.
pub trait BlockGrid: Sync {
    /// How its three blobs are spelled.
    fn layout(&self) -> GridLayout;

    /// Takes whole blocks apart without rounding anything: decoding is `code * scale + offset` in f32, bit for bit.
    /// Each slice of `out` is just as long as the layout says.
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
        let per_block = |element: Element| values / self.block as usize * (element.bits() as usize / 8);
        [values * self.codes.bits() as usize / 8, per_block(self.scales), self.offsets.map_or(0, per_block)]
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
        Split { codes: self.codes, scales: self.scales, offsets: self.offsets }
    }
}

/// The f32 of a half as a block holds it.
fn half(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

/// ggml puts element j of 32 into the low nibble of byte j and element j + 16 into the high one; the result has the even
/// element in the low nibble and its successor in the high one.
fn pair_nibbles(ggml: &[u8; 16]) -> [u8; 16] {
    std::array::from_fn(|k| match k {
        0..8 => (ggml[2 * k] & 0x0f) | (ggml[2 * k + 1] << 4),
        _ => (ggml[2 * k - 16] >> 4) | (ggml[2 * k - 15] & 0xf0),
    })
}
