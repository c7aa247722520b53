//! A tensor a band at a time: whole rows, about a million values, so that memory does not grow with
//! the tensor.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::{BlockGrid, GgmlType, QuantFormat, Split};
use crate::base::{Code, Problem, Result};
use crate::model::facts::TensorFacts;

/// Values of a band; one row where a row is longer.
pub const BAND_VALUES: usize = 1 << 20;

/// Values that one thread takes at a time: whole blocks of every format.
pub(super) const RUN_VALUES: usize = 1 << 16;

/// Values that fit the nearest cache several times over: whole blocks of every format.
pub(super) const TILE_VALUES: usize = 1 << 10;

/// The order in which rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// As stored.
    Stored,
    /// From interleaved RoPE (rows 2i and 2i+1 of a head rotate together) to half-split (rows i and
    /// i + head_dim/2).
    HalfSplit {
        /// Heads of this tensor; a head is the same number of rows in each.
        heads: u32,
    },
}

/// A vector or matrix of a GGUF, with its bytes at hand. A vector is one row, or with
/// [`RowOrder::HalfSplit`] one column.
pub struct BlockTensor<'a> {
    ggml: &'static GgmlType,
    format: &'static dyn QuantFormat,
    order: RowOrder,
    rows: usize,
    columns: usize,
    bytes: &'a [u8],
}

/// Some rows of a tensor, in the order asked for.
pub struct Band<'a> {
    /// Index of the first value in the tensor as it is read.
    pub first: usize,
    /// Number of values.
    pub values: usize,
    /// Their blocks.
    pub blocks: Cow<'a, [u8]>,
}

/// What one thread takes of a band.
pub(super) struct Run<'a> {
    /// Index of its first value in the band.
    pub(super) first: usize,
    /// Number of values.
    pub(super) values: usize,
    /// Their blocks.
    pub(super) blocks: &'a [u8],
}

impl Band<'_> {
    pub(super) fn runs(&self, ggml: &GgmlType) -> Vec<Run<'_>> {
        Run {
            first: 0,
            values: self.values,
            blocks: &self.blocks,
        }
        .pieces(ggml, RUN_VALUES)
        .collect()
    }
}

impl<'a> Run<'a> {
    /// What fits the nearest cache, one after the other.
    pub(super) fn tiles(&self, ggml: &GgmlType) -> impl Iterator<Item = Run<'a>> {
        self.pieces(ggml, TILE_VALUES)
    }

    fn pieces(&self, ggml: &GgmlType, values: usize) -> impl Iterator<Item = Run<'a>> {
        let bytes = values / ggml.block_len as usize * ggml.block_bytes as usize;
        let (start, all) = (self.first, self.values);
        let piece = move |(i, blocks)| {
            let done = i * values;
            Run {
                first: start + done,
                values: values.min(all - done),
                blocks,
            }
        };
        self.blocks.chunks(bytes).enumerate().map(piece)
    }
}

impl<'a> BlockTensor<'a> {
    /// A tensor of `facts` that is held in `bytes`. Refused: more than two dimensions, none
    /// or an empty one, a wrong number of bytes, and heads that do not divide the rows into pairs.
    pub fn new(facts: &TensorFacts, bytes: &'a [u8], order: RowOrder) -> Result<Self> {
        let problem = |what: String| Problem::new(Code::ModelTensor, what);
        let shape = facts
            .shape
            .iter()
            .map(|n| usize::try_from(*n).ok())
            .collect::<Option<Vec<usize>>>();
        let (rows, columns) = match (shape.as_deref(), order) {
            (Some(&[n]), RowOrder::Stored) if n > 0 => (1, n),
            (Some(&[n]), RowOrder::HalfSplit { .. }) if n > 0 => (n, 1),
            (Some(&[rows, columns]), _) if rows > 0 && columns > 0 => (rows, columns),
            _ => {
                return Err(problem(format!(
                    "shape {:?} is neither a vector nor a matrix",
                    facts.shape
                )));
            }
        };
        let ggml = GgmlType::by_name(&facts.ggml_type)?;
        let expected = ggml
            .bytes(columns as u64)
            .and_then(|row| row.checked_mul(rows as u64));
        if expected != Some(bytes.len() as u64) {
            let expected = expected.map_or("no whole number of blocks".to_string(), |n| {
                format!("{n} bytes")
            });
            return Err(problem(format!(
                "shape {:?} of {} is {expected}, found {} bytes",
                facts.shape,
                ggml.name,
                bytes.len()
            )));
        }
        if let RowOrder::HalfSplit { heads } = order
            && !rows.is_multiple_of(heads as usize * 2)
        {
            return Err(problem(format!(
                "{rows} rows are not {heads} heads of row pairs"
            )));
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

    /// How it is decoded.
    pub fn format(&self) -> &'static dyn QuantFormat {
        self.format
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Never: an empty tensor is refused.
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

    fn blocks(&self, rows: Range<usize>) -> Cow<'a, [u8]> {
        let row_bytes = self.bytes.len() / self.rows;
        let stored = |rows: Range<usize>| &self.bytes[rows.start * row_bytes..rows.end * row_bytes];
        match self.order {
            RowOrder::Stored => Cow::Borrowed(stored(rows)),
            RowOrder::HalfSplit { .. } => {
                let mut blocks = Vec::with_capacity(rows.len() * row_bytes);
                rows.map(|row| self.stored_row(row))
                    .for_each(|row| blocks.extend_from_slice(stored(row..row + 1)));
                Cow::Owned(blocks)
            }
        }
    }

    /// Where the row lies that is read as `row`.
    fn stored_row(&self, row: usize) -> usize {
        let RowOrder::HalfSplit { heads } = self.order else {
            return row;
        };
        let head_dim = self.rows / heads as usize;
        let (head, row) = (row / head_dim, row % head_dim);
        head * head_dim + 2 * (row % (head_dim / 2)) + row / (head_dim / 2)
    }

    /// Where value `index` of those read stands in the file, for people.
    pub fn place(&self, index: usize) -> String {
        let (row, column) = (self.stored_row(index / self.columns), index % self.columns);
        let block = (row * self.columns + column) / self.ggml.block_len as usize;
        format!(
            "row {row}, column {column}, in block {block} of type {}",
            self.ggml.name
        )
    }
}

/// Decodes a band on all threads of the rayon pool; `out` holds its values.
pub fn decode(tensor: &BlockTensor, band: &Band, out: &mut [f32]) {
    let runs = band.runs(tensor.ggml);
    runs.par_iter()
        .zip(out.par_chunks_mut(RUN_VALUES))
        .for_each(|(run, out)| tensor.format.decode(run.blocks, out));
}

/// Decodes whole blocks on all threads of the rayon pool into memory far larger than the caches.
pub fn decode_far(ggml: &GgmlType, format: &dyn QuantFormat, blocks: &[u8], out: &mut [f32]) {
    let band_bytes = BAND_VALUES / ggml.block_len as usize * ggml.block_bytes as usize;
    let bands = blocks
        .par_chunks(band_bytes)
        .zip(out.par_chunks_mut(BAND_VALUES));
    bands.for_each(|(blocks, out)| format.decode_far(blocks, out));
}

/// Takes a band apart on all threads of the rayon pool; each slice of `out` is as long as the
/// layout says.
pub fn split(tensor: &BlockTensor, band: &Band, grid: &dyn BlockGrid, out: Split<'_>) {
    let runs = band.runs(tensor.ggml);
    let [codes, scales, offsets] = grid.layout().bytes(RUN_VALUES);
    let mut offsets = slices(out.offsets, offsets, runs.len());
    let codes_scales = out
        .codes
        .par_chunks_mut(codes)
        .zip(out.scales.par_chunks_mut(scales));
    runs.par_iter()
        .zip(codes_scales.zip(offsets.par_iter_mut()))
        .for_each(|(run, ((codes, scales), offsets))| {
            grid.split(
                run.blocks,
                Split {
                    codes,
                    scales,
                    offsets,
                },
            );
        });
}

/// `bytes` in slices of `size`; `count` empty ones where there are none, since a chunk of none
/// would be no chunk.
pub(super) fn slices(bytes: &mut [u8], size: usize, count: usize) -> Vec<&mut [u8]> {
    match size {
        0 => (0..count).map(|_| &mut [][..]).collect(),
        size => bytes.chunks_mut(size).collect(),
    }
}
