//! Reads a tensor in bands of whole rows, about a million values each, so that memory does not grow
//! with the tensor.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{BlockGrid, GgmlType, QuantFormat, Split};
use crate::base::{Code, Problem, Result};

/// Values of a band. A longer row is a band of its own.
pub const BAND_VALUES: usize = 1 << 20;

/// Values that a thread processes at a time: whole blocks of every format.
pub(super) const CHUNK_VALUES: usize = 1 << 16;

/// Values that fit into the L1 cache several times: whole blocks of every format.
pub(super) const TILE_VALUES: usize = 1 << 10;

/// The order in which rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// The order of the file.
    Stored,
    /// Converts interleaved RoPE (rows 2i and 2i+1 of a head are a pair) to half-split RoPE (rows i
    /// and i + head_dim/2 are a pair).
    HalfSplit {
        /// Heads of this tensor. All have the same number of rows.
        heads: u32,
    },
}

/// A tensor of a GGUF.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorFacts {
    /// Outermost dimension first: `[rows, columns]`, `[n]`.
    pub shape: Vec<u64>,
    /// ggml's name of the type: `Q4_0`.
    #[serde(rename = "type")]
    pub ggml_type: String,
}

/// A vector or matrix of a GGUF with its bytes. A vector is one row, or one column with
/// [`RowOrder::HalfSplit`].
pub struct BlockTensor<'a> {
    ggml: &'static GgmlType,
    format: &'static dyn QuantFormat,
    order: RowOrder,
    rows: usize,
    columns: usize,
    bytes: &'a [u8],
}

/// Some rows of a tensor, in its [`RowOrder`].
pub struct Band<'a> {
    /// Index of the first value in the tensor, in this order.
    pub first: usize,
    /// Number of values.
    pub values: usize,
    /// Their blocks.
    pub blocks: Cow<'a, [u8]>,
}

/// The part of a band that a thread processes at a time.
pub(super) struct Chunk<'a> {
    /// Index of its first value in the band.
    pub(super) first: usize,
    /// Number of values.
    pub(super) values: usize,
    /// Their blocks.
    pub(super) blocks: &'a [u8],
}

impl Band<'_> {
    /// The band in chunks of [`CHUNK_VALUES`].
    pub(super) fn chunks(&self, ggml: &GgmlType) -> Vec<Chunk<'_>> {
        let band = Chunk {
            first: 0,
            values: self.values,
            blocks: &self.blocks,
        };
        band.split(ggml, CHUNK_VALUES)
    }
}

impl<'a> Chunk<'a> {
    /// The chunk in tiles of [`TILE_VALUES`].
    pub(super) fn tiles(&self, ggml: &GgmlType) -> Vec<Chunk<'a>> {
        self.split(ggml, TILE_VALUES)
    }

    fn split(&self, ggml: &GgmlType, values: usize) -> Vec<Chunk<'a>> {
        let mut parts = vec![];
        for (i, blocks) in self.blocks.chunks(ggml.block_bytes_of(values)).enumerate() {
            let done = i * values;
            parts.push(Chunk {
                first: self.first + done,
                values: values.min(self.values - done),
                blocks,
            });
        }
        parts
    }
}

impl<'a> BlockTensor<'a> {
    /// A tensor with these `facts` and `bytes`. An error if it is neither a vector nor a matrix or
    /// is empty, if the number of bytes is wrong, or if the heads do not divide the rows into
    /// pairs.
    pub fn new(facts: &TensorFacts, bytes: &'a [u8], order: RowOrder) -> Result<Self> {
        let problem = |message: String| Problem::new(Code::ModelTensor, message);
        let shape = &facts.shape;
        let Some((rows, columns)) = rows_columns(shape, order) else {
            let message = format!("shape {shape:?} is neither a vector nor a matrix");
            return Err(problem(message));
        };
        let ggml = GgmlType::by_name(&facts.ggml_type)?;
        let (name, found) = (ggml.name, bytes.len());
        let expected = match ggml.bytes(columns as u64) {
            Some(row_bytes) => row_bytes.checked_mul(rows as u64),
            None => None,
        };
        if expected != Some(found as u64) {
            let expected = match expected {
                Some(bytes) => format!("{bytes} bytes"),
                None => "no whole number of blocks".to_string(),
            };
            let message = format!("shape {shape:?} of {name} is {expected}, found {found} bytes");
            return Err(problem(message));
        }
        if let RowOrder::HalfSplit { heads } = order
            && !rows.is_multiple_of(heads as usize * 2)
        {
            let message = format!("{rows} rows are not {heads} heads of row pairs");
            return Err(problem(message));
        }
        Ok(BlockTensor {
            ggml,
            format: ggml.format,
            order,
            rows,
            columns,
            bytes,
        })
    }

    /// The storage type.
    pub fn ggml(&self) -> &'static GgmlType {
        self.ggml
    }

    /// The decoder.
    pub fn format(&self) -> &'static dyn QuantFormat {
        self.format
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Always false: [`BlockTensor::new`] refuses empty tensors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the rows are read as they are stored.
    pub fn in_stored_order(&self) -> bool {
        self.order == RowOrder::Stored
    }

    /// All bands, in order.
    pub fn bands(&self) -> impl Iterator<Item = Band<'a>> {
        let step = (BAND_VALUES / self.columns).max(1);
        (0..self.rows).step_by(step).map(move |first| {
            let rows = first..(first + step).min(self.rows);
            Band {
                first: first * self.columns,
                values: rows.len() * self.columns,
                blocks: self.blocks(rows),
            }
        })
    }

    /// The blocks of `rows`, in the order of this tensor.
    fn blocks(&self, rows: Range<usize>) -> Cow<'a, [u8]> {
        let row_bytes = self.bytes.len() / self.rows;
        if self.order == RowOrder::Stored {
            return Cow::Borrowed(&self.bytes[rows.start * row_bytes..rows.end * row_bytes]);
        }
        let mut blocks = Vec::with_capacity(rows.len() * row_bytes);
        for row in rows {
            let start = self.stored_row(row) * row_bytes;
            blocks.extend_from_slice(&self.bytes[start..start + row_bytes]);
        }
        Cow::Owned(blocks)
    }

    /// The index of `row` in the file.
    fn stored_row(&self, row: usize) -> usize {
        let RowOrder::HalfSplit { heads } = self.order else {
            return row;
        };
        let head_dim = self.rows / heads as usize;
        let (head, row) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (row % (head_dim / 2)) + row / (head_dim / 2)
    }

    /// The place of value `index` in the file, for messages.
    pub fn place(&self, index: usize) -> String {
        let (row, column) = (self.stored_row(index / self.columns), index % self.columns);
        let block = (row * self.columns + column) / self.ggml.block_len as usize;
        format!(
            "row {row}, column {column}, in block {block} of type {}",
            self.ggml.name
        )
    }
}

/// The rows and columns of a tensor; `None` if it is neither a vector nor a matrix, or empty.
fn rows_columns(shape: &[u64], order: RowOrder) -> Option<(usize, usize)> {
    let (rows, columns) = match (shape, order) {
        (&[n], RowOrder::Stored) => (1, n),
        (&[n], RowOrder::HalfSplit { .. }) => (n, 1),
        (&[rows, columns], _) => (rows, columns),
        _ => return None,
    };
    if rows == 0 || columns == 0 {
        return None;
    }
    Some((usize::try_from(rows).ok()?, usize::try_from(columns).ok()?))
}

/// Decodes a band on all threads of the rayon pool. `out` has its number of values.
pub fn decode(tensor: &BlockTensor, band: &Band, out: &mut [f32]) {
    let chunks = band.chunks(tensor.ggml);
    let outs = out.par_chunks_mut(CHUNK_VALUES);
    let chunks = chunks.par_iter().zip(outs);
    chunks.for_each(|(chunk, out)| tensor.format.decode(chunk.blocks, out));
}

/// Decodes whole blocks on all threads of the rayon pool into memory much larger than the caches.
pub fn decode_streaming(ggml: &GgmlType, format: &dyn QuantFormat, blocks: &[u8], out: &mut [f32]) {
    let bands = blocks.par_chunks(ggml.block_bytes_of(BAND_VALUES));
    let bands = bands.zip(out.par_chunks_mut(BAND_VALUES));
    bands.for_each(|(blocks, out)| format.decode_streaming(blocks, out));
}

/// Splits a band on all threads of the rayon pool. Each slice of `out` has the length that the
/// layout of `grid` requires.
pub fn split(tensor: &BlockTensor, band: &Band, grid: &dyn BlockGrid, out: Split<'_>) {
    let chunks = band.chunks(tensor.ggml);
    let sizes = grid.layout().bytes(CHUNK_VALUES);
    let chunks = chunks.par_iter().zip(out.split(sizes, chunks.len()));
    chunks.for_each(|(chunk, out)| grid.split(chunk.blocks, out));
}

/// `bytes` in slices of `size`; `count` empty slices if `size` is zero.
pub(super) fn slices(bytes: &mut [u8], size: usize, count: usize) -> Vec<&mut [u8]> {
    if size > 0 {
        return bytes.chunks_mut(size).collect();
    }
    let mut empty = Vec::with_capacity(count);
    empty.resize_with(count, Default::default);
    empty
}
