//! A weight as `requant` gives it, read row by row: the one place that knows how its blobs are
//! spelled.

use crate::action::{Blob, Job};
use crate::base::{Problem, Result};
use crate::model::facts::{Element, WeightFacts};
use crate::model::quant::number_at;

/// The values of a tensor.
pub struct Weight {
    /// Rows and columns; a vector is one row.
    pub rows: usize,
    /// Values of a row.
    pub columns: usize,
    spelling: Spelling,
}

enum Spelling {
    Values(Numbers),
    Blocks(Blocks),
}

/// `code * scale + offset`; the scale of LPBQ is that of its block times that of its row.
struct Blocks {
    block: usize,
    codes: Numbers,
    scales: Numbers,
    channels: Option<Numbers>,
    offsets: Option<Numbers>,
}

/// A blob and what its elements are.
struct Numbers {
    element: Element,
    bytes: Blob,
}

impl Weight {
    /// The weight whose blobs are the inputs `folder/codes`, `folder/scales` and perhaps
    /// `folder/offsets`; `folder/codes`, `folder/block_scales` and `folder/channel_scales`; or
    /// `folder/values`.
    pub fn read(job: &Job, folder: &str, facts: &WeightFacts) -> Result<Self> {
        let problem =
            |what: String| Problem::new("kiln::model::weight", format!("`{folder}`: {what}"));
        let extent = |n: &u64| usize::try_from(*n).ok();
        let (rows, columns) = match facts
            .shape
            .iter()
            .map(extent)
            .collect::<Option<Vec<_>>>()
            .as_deref()
        {
            Some(&[columns]) => (1, columns),
            Some(&[rows, columns]) => (rows, columns),
            _ => {
                return Err(problem(format!(
                    "shape {:?} is neither a vector nor a matrix",
                    facts.shape
                )));
            }
        };
        let numbers = |name: &str, element: Element, columns: usize| {
            let bytes = job.read(&format!("{folder}/{name}"))?;
            let bits = rows
                .checked_mul(columns)
                .and_then(|count| count.checked_mul(element.bits() as usize));
            match bits {
                Some(bits) if bits.div_ceil(8) == bytes.len() => Ok(Numbers { element, bytes }),
                _ => Err(problem(format!(
                    "{name} of {rows} x {columns} {element:?} have {} bytes",
                    bytes.len()
                ))),
            }
        };
        let Some(block) = facts.block else {
            let values = numbers("values", facts.element, columns)?;
            return Ok(Weight {
                rows,
                columns,
                spelling: Spelling::Values(values),
            });
        };
        let block = block as usize;
        if block == 0 || !columns.is_multiple_of(block) {
            return Err(problem(format!(
                "{columns} columns are no whole number of blocks of {block}"
            )));
        }
        let element = |name: &str| -> Result<Element> {
            let facts: WeightFacts = job.input(&format!("{folder}/{name}"))?.facts.read()?;
            Ok(facts.element)
        };
        let has = |blob: &str| {
            job.inputs()
                .any(|(name, _)| name.strip_prefix(folder) == Some(blob))
        };
        let optional = |is_there: bool, name: &str, columns: usize| {
            is_there
                .then(|| numbers(name, element(name)?, columns))
                .transpose()
        };
        let scales = if has("/block_scales") {
            "block_scales"
        } else {
            "scales"
        };
        let blocks = Blocks {
            block,
            codes: numbers("codes", facts.element, columns)?,
            scales: numbers(scales, element(scales)?, columns / block)?,
            channels: optional(has("/channel_scales"), "channel_scales", 1)?,
            offsets: optional(has("/offsets"), "offsets", columns / block)?,
        };
        Ok(Weight {
            rows,
            columns,
            spelling: Spelling::Blocks(blocks),
        })
    }

    /// Lets go of what was read so far.
    pub fn leave(&self) {
        let all: [Option<&Numbers>; 4] = match &self.spelling {
            Spelling::Values(values) => [Some(values), None, None, None],
            Spelling::Blocks(Blocks {
                codes,
                scales,
                channels,
                offsets,
                ..
            }) => [
                Some(codes),
                Some(scales),
                channels.as_ref(),
                offsets.as_ref(),
            ],
        };
        all.into_iter()
            .flatten()
            .for_each(|numbers| numbers.bytes.leave(0..numbers.bytes.len()));
    }

    /// Puts the values of a row into `out`: `code * scale + offset` in f32, as the documents define
    /// them.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        match &self.spelling {
            Spelling::Values(values) => values.put(row * self.columns, out),
            Spelling::Blocks(Blocks {
                block,
                codes,
                scales,
                channels,
                offsets,
            }) => {
                codes.put(row * self.columns, out);
                let blocks = self.columns / block;
                let channel = channels.as_ref().map_or(1.0, |channels| channels.at(row));
                for (index, out) in out.chunks_mut(*block).enumerate() {
                    let scale = channel * scales.at(row * blocks + index);
                    let offset = offsets
                        .as_ref()
                        .map(|offsets| offsets.at(row * blocks + index));
                    match offset {
                        None => out.iter_mut().for_each(|value| *value *= scale),
                        Some(offset) => out
                            .iter_mut()
                            .for_each(|value| *value = *value * scale + offset),
                    }
                }
            }
        }
    }
}

impl Numbers {
    fn put(&self, first: usize, out: &mut [f32]) {
        out.iter_mut()
            .enumerate()
            .for_each(|(index, out)| *out = self.at(first + index));
    }

    fn at(&self, index: usize) -> f32 {
        number_at(self.element, &self.bytes, index)
    }
}
