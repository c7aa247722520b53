//! A weight that `requant` or `dequant` wrote, read row by row.

use crate::action::{Blob, Job, Manifest, Part};
use crate::base::{Code, Problem, Result};
use crate::model::quant::number_at;
use crate::model::weight::{Element, SumColumns, WeightFacts, WeightPart};

/// The values of a tensor.
pub struct Weight {
    /// Rows and columns; a vector is one row.
    pub rows: usize,
    /// Values of a row.
    pub columns: usize,
    /// Columns that share a scale.
    block: usize,
    /// The columns that follow those of the weight in its parts.
    added: Option<SumColumns>,
    /// The values or codes come first.
    parts: Vec<(WeightPart, Numbers)>,
}

/// A blob and the type of its elements.
struct Numbers {
    element: Element,
    bytes: Blob,
}

/// The main part of the weight `name` in `weights`, and its facts, which describe the weight.
pub fn main_part<'a>(weights: &'a Manifest, name: &str) -> Result<(&'a Part, WeightFacts)> {
    for (_, part) in weights.under(name) {
        let facts: WeightFacts = part.facts.read()?;
        if facts.is_main() {
            return Ok((part, facts));
        }
    }
    Err(missing(name))
}

/// The facts of the main part of the weight whose parts are the inputs `folder/codes` and so on.
pub fn facts(job: &Job, folder: &str) -> Result<WeightFacts> {
    for (name, input) in job.inputs() {
        let inside = name.strip_prefix(folder);
        if inside.is_some_and(|inside| inside.starts_with('/')) {
            let facts: WeightFacts = input.facts.read()?;
            if facts.is_main() {
                return Ok(facts);
            }
        }
    }
    Err(missing(folder))
}

fn missing(name: &str) -> Problem {
    Problem::new(
        Code::WeightsMissing,
        format!("the weights have no tensor `{name}`"),
    )
    .help("give the weights of this model")
}

impl Weight {
    /// The weight whose parts are the inputs `folder/codes` and so on.
    pub fn read(job: &Job, folder: &str) -> Result<Self> {
        let problem = |what: String| Problem::new(Code::ModelWeight, format!("`{folder}`: {what}"));
        let WeightFacts {
            encoding, shape, ..
        } = facts(job, folder)?;
        let mut parts = vec![];
        for spec in encoding.parts(&shape).map_err(problem)? {
            let name = spec.part.name();
            let bytes = job.read(&format!("{folder}/{name}"))?;
            if spec.size_bytes() != Some(bytes.len() as u64) {
                return Err(problem(format!(
                    "{name} as {} {:?} have {} bytes",
                    spec.element.name(),
                    spec.shape,
                    bytes.len()
                )));
            }
            let element = spec.element;
            parts.push((spec.part, Numbers { element, bytes }));
        }
        let (rows, columns) = match *shape.as_slice() {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => {
                return Err(problem(format!(
                    "shape {shape:?} is neither a vector nor a matrix"
                )));
            }
        };
        // The blobs have this size, so both numbers fit a `usize`.
        Ok(Weight {
            rows: rows as usize,
            columns: columns as usize,
            block: encoding.block(columns).unwrap_or(columns) as usize,
            added: encoding.added_columns(columns),
            parts,
        })
    }

    /// Releases the memory of what was read so far.
    pub fn evict(&self) {
        for (_, numbers) in &self.parts {
            numbers.bytes.evict(0..numbers.bytes.len());
        }
    }

    fn part(&self, part: WeightPart) -> Option<&Numbers> {
        for (known, numbers) in &self.parts {
            if *known == part {
                return Some(numbers);
            }
        }
        None
    }

    /// Whether the codes of `block` of the row that begins at code `first` are stored minus 1.
    fn is_shifted(&self, first: usize, block: usize) -> bool {
        let (Some(added), Some((_, codes))) = (self.added, self.parts.first()) else {
            return false;
        };
        let coarse = first + self.columns + block;
        let fine = coarse + added.group() as usize;
        [coarse, fine].iter().any(|index| codes.at(*index) != 0.0)
    }

    /// Writes the values of a row to `out`: `code * scale + offset` in f32, as `docs/artifacts.md`
    /// defines them.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let added = self.added.map_or(0, SumColumns::count) as usize;
        let width = self.columns + added;
        if let Some((_, main)) = self.parts.first() {
            let first = row * width;
            for (index, value) in out.iter_mut().enumerate() {
                *value = main.at(first + index);
            }
        }
        let integers = self.part(WeightPart::BlockScales);
        let Some(scales) = self.part(WeightPart::Scales).or(integers) else {
            return;
        };
        let offsets = self.part(WeightPart::Offsets);
        let channel = match self.part(WeightPart::ChannelScales) {
            Some(channels) => channels.at(row),
            None => 1.0,
        };
        let first = row * (width / self.block);
        for (block, values) in out.chunks_mut(self.block).enumerate() {
            let scale = channel * scales.at(first + block);
            if self.is_shifted(row * width, block) {
                for value in values.iter_mut() {
                    *value += 1.0;
                }
            }
            for value in values.iter_mut() {
                *value *= scale;
            }
            if let Some(offsets) = offsets {
                let offset = offsets.at(first + block);
                for value in values {
                    *value += offset;
                }
            }
        }
    }
}

impl Numbers {
    fn at(&self, index: usize) -> f32 {
        number_at(self.element, &self.bytes, index)
    }
}
