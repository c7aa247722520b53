//! The tensor list of a GGUF, and where each tensor lies.

use std::collections::HashSet;
use std::ops::Range;

use super::CUT;
use super::metadata::quoted;
use super::reader::Reader;
use crate::base::{Code, Problem, Result};
use crate::model::facts::TensorFacts;
use crate::model::quant::GgmlType;

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
    /// How it is stored.
    pub ggml: &'static GgmlType,
    /// Where its bytes lie in its file.
    pub range: Range<u64>,
    /// Which of the model's files that is.
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

    /// Number of values.
    pub fn values(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Reads `claimed` entries. Their ranges begin at the data section, which is not known yet.
    pub fn read_all(
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
                return Err(wrong(format!("tensor {} twice", quoted(name))));
            }
            tensors.push(tensor);
        }
        Ok(tensors)
    }

    /// Reads the entry after its name. `next` is where its data must begin, and then where those of
    /// the tensor after it must.
    fn read(
        reader: &mut Reader<'a>,
        name: &'a str,
        next: &mut u64,
        alignment: u64,
    ) -> Result<Self> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(wrong(format!(
                "its name has {} bytes; expected 1 to {MAX_NAME_BYTES}",
                name.len()
            )));
        }
        let dims = reader.u32()?;
        if dims > MAX_DIMS {
            return Err(wrong(format!(
                "{dims} dimensions; at most {MAX_DIMS} are allowed"
            )));
        }
        let mut shape = (0..dims)
            .map(|_| reader.u64())
            .collect::<Result<Vec<u64>>>()?;
        let ggml = GgmlType::by_id(reader.u32()?)?;
        let offset = reader.u64()?;

        let row = shape.first().copied().unwrap_or(1);
        shape.reverse();
        // A zero among the dimensions must not hide an overflow of the others, so each is at least
        // one here.
        let values = shape.iter().try_fold(1i64, |product, dim| {
            product.checked_mul(i64::try_from(*dim).ok()?.max(1))
        });
        if values.is_none() {
            return Err(wrong(format!("shape {shape:?} has 2^63 values or more")));
        }
        if row % ggml.block_len != 0 {
            return Err(wrong(format!(
                "rows of {row} are no whole number of {} blocks of {}",
                ggml.name, ggml.block_len
            )));
        }
        let size = ggml.bytes(shape.iter().product());
        if offset != *next {
            return Err(wrong(format!(
                "its data begin at {offset} of the data section; expected {next}"
            )));
        }
        let end = size.and_then(|size| offset.checked_add(size));
        let padded = end.and_then(|end| end.checked_next_multiple_of(alignment));
        let (Some(end), Some(padded)) = (end, padded) else {
            return Err(wrong(format!(
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

    /// Moves the ranges to where the data section begins, and holds them against the length of the
    /// file.
    pub fn place_all(
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
                    .help(CUT));
                }
            };
        }
        Ok(())
    }
}

fn wrong(message: String) -> Problem {
    Problem::new(Code::ModelGgufTensor, message)
}
