//! Constants of an ONNX graph as bytes.

use half::{bf16, f16};

use super::Open;
use super::half::Fp16Weights;
use crate::action::Blob;
use crate::base::{Code, Problem, Result};
use crate::model::onnx::proto::{EXTERNAL, TensorProto};
use crate::model::onnx::{element_name, element_of};
use crate::model::weight::Element;

/// A constant: little-endian, row-major; of two codes in a byte the even one is in the low nibble.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) dims: Vec<u64>,
    bytes: Blob,
}

impl Stored {
    /// The bytes of `tensor`, written into the graph or in a file of their own.
    pub(super) fn open(tensor: &TensorProto, dims: &[u64], open: Open) -> Result<Stored> {
        let name = tensor.name.clone();
        let problem = |what: String| {
            Problem::new(
                Code::LowerConstant,
                format!("constant `{}` {what}", tensor.name),
            )
        };
        let element = element_of(tensor.data_type).ok_or_else(|| {
            problem(format!(
                "has type {}, which no weight has",
                element_name(tensor.data_type)
            ))
        })?;
        let bytes = if tensor.data_location == EXTERNAL {
            external(tensor, open)?
        } else if tensor.raw_data.is_empty() {
            Blob::new(
                tensor
                    .float_data
                    .iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect::<Vec<u8>>(),
            )
        } else {
            Blob::new(tensor.raw_data.clone())
        };
        let count: u64 = dims.iter().product();
        let expected = (count * element.bits()).div_ceil(8);
        if bytes.len() as u64 != expected {
            return Err(problem(format!(
                "{dims:?} has {} bytes, expected {expected}",
                bytes.len()
            )));
        }
        Ok(Stored {
            name,
            element,
            dims: dims.into(),
            bytes,
        })
    }

    /// Elements `from .. from + count` of floating-point numbers.
    pub(super) fn numbers(&self, from: usize, count: usize) -> impl Iterator<Item = f32> + '_ {
        let width = if self.element == Element::F32 { 4 } else { 2 };
        let bytes = self
            .bytes
            .get(from * width..(from + count) * width)
            .unwrap_or_default();
        bytes
            .chunks_exact(width)
            .map(|bytes| match (self.element, bytes) {
                (Element::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
                (Element::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
                (_, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
                _ => 0.0,
            })
    }

    /// All elements of floating-point numbers.
    pub(super) fn all_numbers(&self) -> impl Iterator<Item = f32> + '_ {
        self.numbers(0, self.dims.iter().product::<u64>() as usize)
    }

    /// Element `index` of codes.
    pub(super) fn code(&self, index: usize) -> i32 {
        let byte = |index: usize| self.bytes.get(index).copied().unwrap_or_default();
        let nibble = (byte(index / 2) >> (4 * (index % 2))) & 15;
        match self.element {
            Element::Uint4 => i32::from(nibble),
            Element::Int4 => i32::from((nibble << 4) as i8 >> 4),
            Element::Uint8 => i32::from(byte(index)),
            _ => i32::from(byte(index) as i8),
        }
    }

    /// All numbers times `gain`, as halves.
    pub(super) fn f16s(&self, gain: f32) -> Result<Vec<u8>> {
        let mut f16s = Fp16Weights::default();
        let bytes = self
            .all_numbers()
            .flat_map(|value| f16s.round(value * gain))
            .collect();
        f16s.finish(&self.name)?;
        Ok(bytes)
    }

    /// A matrix `[rows, columns]` times `gain`, as halves `[columns, rows]`.
    pub(super) fn halves_transposed(
        &self,
        [rows, columns]: [usize; 2],
        gain: f32,
    ) -> Result<Vec<u8>> {
        let mut f16s = Fp16Weights::default();
        let bytes = transposed(rows, columns, |row, out: &mut [[u8; 2]]| {
            out.iter_mut()
                .zip(self.numbers(row * columns, columns))
                .for_each(|(out, x)| *out = f16s.round(x * gain));
        });
        f16s.finish(&self.name)?;
        Ok(bytes)
    }
}

fn external(tensor: &TensorProto, open: Open) -> Result<Blob> {
    let problem = |what: String| {
        Problem::new(
            Code::LowerExternal,
            format!("the external data of `{}` {what}", tensor.name),
        )
    };
    let number = |key: &str, default: u64| match tensor.external(key) {
        Some(text) => text
            .parse::<u64>()
            .map_err(|_| problem(format!("has {key} `{text}`, no number"))),
        None => Ok(default),
    };
    let location = tensor
        .external("location")
        .ok_or_else(|| problem("has no location".into()))?;
    let file = open(location).map_err(|why| {
        why.within(format!(
            "failed to open `{location}`, the data of `{}`",
            tensor.name
        ))
    })?;
    let offset = number("offset", 0)?;
    let length = number("length", (file.len() as u64).saturating_sub(offset))?;
    let end = offset.checked_add(length);
    end.and_then(|end| file.slice(offset..end)).ok_or_else(|| {
        problem(format!(
            "is {length} bytes at {offset} of `{location}`, which has {}",
            file.len()
        ))
    })
}

/// A matrix of S-byte elements `[rows, columns]`, given row by row, as `[columns, rows]`.
pub(super) fn transposed<const S: usize>(
    rows: usize,
    columns: usize,
    mut fill: impl FnMut(usize, &mut [[u8; S]]),
) -> Vec<u8> {
    // So many rows that a run of them fills a cache line of the result.
    const BAND: usize = 64;
    let mut out = vec![[0; S]; rows * columns];
    let mut band = vec![[0; S]; BAND * columns];
    for first in (0..rows).step_by(BAND) {
        let count = BAND.min(rows - first);
        for (row, slot) in band.chunks_exact_mut(columns).take(count).enumerate() {
            fill(first + row, slot);
        }
        for column in 0..columns {
            for row in 0..count {
                out[column * rows + first + row] = band[row * columns + column];
            }
        }
    }
    out.into_flattened()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_keeps_every_element() {
        let (rows, columns) = (70, 3);
        let bytes = transposed(rows, columns, |row, out| {
            out.iter_mut()
                .enumerate()
                .for_each(|(column, out)| *out = [row as u8, column as u8]);
        });
        let expected: Vec<u8> = (0..columns)
            .flat_map(|c| (0..rows).flat_map(move |r| [r as u8, c as u8]))
            .collect();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn codes_of_every_type() {
        let codes = |element, bytes: &[u8]| {
            let stored = Stored {
                name: "w".into(),
                element,
                dims: vec![2],
                bytes: Blob::new(bytes.to_vec()),
            };
            [stored.code(0), stored.code(1)]
        };
        assert_eq!(codes(Element::Uint4, &[0x8f]), [15, 8]);
        assert_eq!(codes(Element::Int4, &[0x8f]), [-1, -8]);
        assert_eq!(codes(Element::Int8, &[0x8f, 0x7f]), [-113, 127]);
    }
}
