//! ggml's quantized formats: decoded bit for bit as ggml does, and split into codes, scales and offsets. One file a format.

mod bands;
mod bits;
mod blockwise;
mod codebook;
mod error;
mod grids;
mod halves;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
pub mod kernels;
mod metric;
mod mxfp4;
mod nvfp4;
mod plain;
mod positive;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_k;
mod round;
mod rows;
mod search;
mod search_wide;
mod tq1_0;
mod tq2_0;
mod types;
mod wide;

pub use bands::{BAND_VALUES, Band, BlockTensor, RowOrder, decode, decode_far, split};
pub use error::{ErrorLanes, ErrorSum};
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
pub use wide::WideNumbers;

use crate::model::facts::Element;

/// A storage format of ggml that kiln decodes.
pub trait QuantFormat: Sync {
    /// Decodes whole blocks, bit-equal to ggml's `dequantize_row_*` of ggml-quants.c. `out` holds as many values.
    fn decode(&self, blocks: &[u8], out: &mut [f32]);

    /// The same into memory far larger than the caches, and past them where the machine can: what would be out of them
    /// again when it is read need not push out what is in them.
    fn decode_far(&self, blocks: &[u8], out: &mut [f32]) {
        self.decode(blocks, out);
    }

    /// What its values are made of.
    fn spelling(&'static self) -> Spelling;
}

/// What the values of a format are made of.
#[derive(Clone, Copy)]
pub enum Spelling {
    /// Each value stands for itself.
    Values(Element),
    /// Each value stands for itself, and a single may not hold it.
    Wide(&'static dyn WideNumbers),
    /// Blocks share a scale.
    Blocks(&'static dyn BlockGrid),
}

impl Spelling {
    /// The numbers, where singles may not hold them.
    fn wide(self) -> Option<&'static dyn WideNumbers> {
        match self {
            Spelling::Wide(numbers) => Some(numbers),
            _ => None,
        }
    }
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
    halves::to_single(u16::from_le_bytes(bytes))
}

/// ggml puts element j of 32 into the low nibble of byte j and element j + 16 into the high one; the result has the even
/// element in the low nibble and its successor in the high one.
fn pair_nibbles(ggml: &[u8; 16]) -> [u8; 16] {
    std::array::from_fn(|k| match k {
        0..8 => (ggml[2 * k] & 0x0f) | (ggml[2 * k + 1] << 4),
        _ => (ggml[2 * k - 16] >> 4) | (ggml[2 * k - 15] & 0xf0),
    })
}
