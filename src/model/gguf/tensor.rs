//! The tensor list of a GGUF: names, types, shapes, and byte ranges in the file.

use std::collections::HashSet;
use std::ops::Range;

use super::TRUNCATED_HELP;
use super::metadata::quoted;
use super::reader::Reader;
use crate::base::{Code, Problem, Result};
use crate::model::quant::{GgmlType, TensorFacts};

/// Most tensors of a file; a 70 B model has about 700.
const MAX_TENSORS: u64 = 1 << 16;

/// Longest name, as in ggml (`GGML_MAX_NAME` is 64, with a zero at the end).
const MAX_NAME_BYTES: usize = 63;

/// Most dimensions, as in ggml (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;

/// Bytes of the shortest entry: an empty name's length, no dimensions, type and offset.
const SMALLEST_ENTRY: u64 = 8 + 4 + 4 + 8;

/// A tensor of a GGUF.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo<'a> {
    /// Its name: `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Outermost dimension first, the reverse of the file.
    pub shape: Vec<u64>,
    /// Its type.
    pub ggml: &'static GgmlType,
    /// Its bytes in the file.
    pub range: Range<u64>,
    /// Index of the file.
    pub file: usize,
}

impl<'a> TensorInfo<'a> {
    /// Its facts.
    pub fn facts(&self) -> TensorFacts {
        TensorFacts {
            shape: self.shape.clone(),
            ggml_type: self.ggml.name.into(),
        }
    }

    /// Its `rows` as a tensor called `name`. Rows are whole blocks.
    pub fn some_rows<'b>(&self, name: &'b str, rows: Range<u64>) -> TensorInfo<'b> {
        let all = self.shape.first().copied().unwrap_or(0);
        let bytes = self.range.end - self.range.start;
        let row_bytes = bytes.checked_div(all).unwrap_or(0);
        let mut shape = self.shape.clone();
        if let Some(extent) = shape.first_mut() {
            *extent = rows.end - rows.start;
        }
        let start = self.range.start + rows.start * row_bytes;
        let end = self.range.start + rows.end * row_bytes;
        TensorInfo {
            name,
            shape,
            ggml: self.ggml,
            range: start..end,
            file: self.file,
        }
    }

    /// Number of values.
    pub fn values(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Reads `claimed` entries. Their ranges are relative to the data section, whose offset is not
    /// known yet.
    pub(super) fn read_all(
        reader: &mut Reader<'a>,
        claimed: u64,
        alignment: u64,
    ) -> Result<Vec<TensorInfo<'a>>> {
        let count = reader.count(claimed, SMALLEST_ENTRY, MAX_TENSORS, "tensors")?;
        let mut names = HashSet::with_capacity(count);
        let mut tensors = Vec::with_capacity(count);
        let mut next = 0;
        for index in 0..count {
            let name = reader.string().map_err(|problem| {
                problem.within(format!("failed to read the name of tensor {index}"))
            })?;
            let tensor =
                TensorInfo::read(reader, name, &mut next, alignment).map_err(|problem| {
                    problem.within(format!("failed to read tensor {}", quoted(name)))
                })?;
            if !names.insert(name) {
                return Err(invalid(format!("tensor {} twice", quoted(name))));
            }
            tensors.push(tensor);
        }
        Ok(tensors)
    }

    /// Reads an entry after its name. `next` is the expected offset of its data, and becomes that
    /// of the next tensor.
    fn read(
        reader: &mut Reader<'a>,
        name: &'a str,
        next: &mut u64,
        alignment: u64,
    ) -> Result<Self> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(invalid(format!(
                "its name has {} bytes; expected 1 to {MAX_NAME_BYTES}",
                name.len()
            )));
        }
        let dims = reader.u32()?;
        if dims > MAX_DIMS {
            return Err(invalid(format!(
                "{dims} dimensions; at most {MAX_DIMS} are allowed"
            )));
        }
        let mut shape = vec![];
        for _ in 0..dims {
            shape.push(reader.u64()?);
        }
        let ggml = GgmlType::by_id(reader.u32()?)?;
        let offset = reader.u64()?;

        let row = shape.first().copied().unwrap_or(1);
        shape.reverse();
        // A zero among the dimensions must not hide an overflow of the others, so each is at least
        // one here.
        let mut values = 1u64;
        for &dim in &shape {
            values = values.saturating_mul(dim.max(1));
        }
        if values > i64::MAX as u64 {
            return Err(invalid(format!("shape {shape:?} has 2^63 values or more")));
        }
        if row % ggml.block_len != 0 {
            return Err(invalid(format!(
                "rows of {row} are no whole number of {} blocks of {}",
                ggml.name, ggml.block_len
            )));
        }
        if offset != *next {
            return Err(invalid(format!(
                "its data begin at {offset} of the data section; expected {next}"
            )));
        }
        let size = ggml.bytes(shape.iter().product());
        let Some((end, padded)) = size.and_then(|size| end_of(offset, size, alignment)) else {
            return Err(invalid(format!(
                "shape {shape:?} of {} at {offset} ends beyond 2^64 bytes",
                ggml.name
            )));
        };
        *next = padded;
        Ok(TensorInfo {
            name,
            shape,
            ggml,
            range: offset..end,
            file: 0,
        })
    }

    /// Adds the offset of the data section to the ranges, and checks them against the length of the
    /// file.
    pub(super) fn place_all(
        tensors: &mut [TensorInfo<'a>],
        data_offset: u64,
        file_bytes: u64,
    ) -> Result<()> {
        for TensorInfo { name, range, .. } in tensors {
            let (start, end) = (
                range.start.checked_add(data_offset),
                range.end.checked_add(data_offset),
            );
            *range = match (start, end) {
                (Some(start), Some(end)) if end <= file_bytes => start..end,
                _ => {
                    let needed = range.end as u128 + data_offset as u128;
                    return Err(Problem::new(
                        Code::ModelGgufTruncated,
                        format!(
                            "tensor {} ends at byte {needed}, but the file has {file_bytes}",
                            quoted(name)
                        ),
                    )
                    .help(TRUNCATED_HELP));
                }
            };
        }
        Ok(())
    }
}

/// The end of `size` bytes at `offset`, without and with padding; `None` on overflow.
fn end_of(offset: u64, size: u64, alignment: u64) -> Option<(u64, u64)> {
    let end = offset.checked_add(size)?;
    Some((end, end.checked_next_multiple_of(alignment)?))
}

fn invalid(message: String) -> Problem {
    Problem::new(Code::ModelGgufTensor, message)
}
