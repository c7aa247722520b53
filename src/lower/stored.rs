//! Reads the constants of an ONNX graph.

use half::{bf16, f16};

use super::Open;
use super::half::Fp16Weights;
use crate::action::Blob;
use crate::base::{Code, Problem, Result};
use crate::model::onnx::proto::{EXTERNAL, TensorProto};
use crate::model::onnx::{element_name, element_of};
use crate::model::weight::Element;

/// A constant: little-endian, row-major. Of two codes in a byte, the even one is in the low nibble.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) element: Element,
    pub(super) dims: Vec<u64>,
    bytes: Blob,
}

impl Stored {
    /// Reads `tensor`, whose bytes are in the graph or in an external file.
    pub(super) fn open(tensor: &TensorProto, dims: &[u64], open_file: Open) -> Result<Stored> {
        let name = &tensor.name;
        let Some(element) = element_of(tensor.data_type) else {
            let data_type = element_name(tensor.data_type);
            return Err(Problem::new(
                Code::LowerConstant,
                format!("constant `{name}` has type {data_type}, which no weight has"),
            ));
        };
        let bytes = if tensor.data_location == EXTERNAL {
            open_external(tensor, open_file)?
        } else if tensor.raw_data.is_empty() {
            let mut bytes = vec![];
            for number in &tensor.float_data {
                bytes.extend(number.to_le_bytes());
            }
            Blob::new(bytes)
        } else {
            Blob::new(tensor.raw_data.clone())
        };
        let count: u64 = dims.iter().product();
        let expected = (count * element.bits()).div_ceil(8);
        if bytes.len() as u64 != expected {
            return Err(Problem::new(
                Code::LowerConstant,
                format!(
                    "constant `{name}` {dims:?} has {} bytes, expected {expected}",
                    bytes.len()
                ),
            ));
        }
        Ok(Stored {
            name: name.clone(),
            element,
            dims: dims.into(),
            bytes,
        })
    }

    /// Elements `from .. from + count` of a constant of floating-point numbers.
    fn numbers(&self, from: usize, count: usize) -> impl Iterator<Item = f32> + '_ {
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

    /// All elements of a constant of floating-point numbers.
    pub(super) fn all_numbers(&self) -> impl Iterator<Item = f32> + '_ {
        self.numbers(0, self.dims.iter().product::<u64>() as usize)
    }

    /// Element `index` of a constant of codes.
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

    /// All elements of a constant of codes.
    pub(super) fn all_codes(&self) -> impl Iterator<Item = i32> + '_ {
        let count = self.dims.iter().product::<u64>() as usize;
        (0..count).map(|index| self.code(index))
    }

    /// All numbers times `gain`, in f16.
    pub(super) fn f16s(&self, gain: f32) -> Result<Vec<u8>> {
        let mut f16s = Fp16Weights::default();
        let mut bytes = vec![];
        for number in self.all_numbers() {
            bytes.extend(f16s.round(number * gain));
        }
        f16s.finish(&self.name)?;
        Ok(bytes)
    }

    /// A matrix `[rows, columns]` times `gain`, in f16 and transposed to `[columns, rows]`.
    pub(super) fn f16s_transposed(
        &self,
        [rows, columns]: [usize; 2],
        gain: f32,
    ) -> Result<Vec<u8>> {
        let mut f16s = Fp16Weights::default();
        let bytes = transposed(rows, columns, |row, out: &mut [[u8; 2]]| {
            let numbers = self.numbers(row * columns, columns);
            for (out, number) in out.iter_mut().zip(numbers) {
                *out = f16s.round(number * gain);
            }
        });
        f16s.finish(&self.name)?;
        Ok(bytes)
    }
}

fn open_external(tensor: &TensorProto, open_file: Open) -> Result<Blob> {
    let Some(location) = tensor.external("location") else {
        return Err(external_problem(tensor, "has no location"));
    };
    let file = open_file(location).map_err(|problem| {
        problem.within(format!(
            "failed to open `{location}`, the data of `{}`",
            tensor.name
        ))
    })?;
    let offset = external_number(tensor, "offset", 0)?;
    let to_end = (file.len() as u64).saturating_sub(offset);
    let length = external_number(tensor, "length", to_end)?;
    if let Some(end) = offset.checked_add(length)
        && let Some(bytes) = file.slice(offset..end)
    {
        return Ok(bytes);
    }
    Err(external_problem(
        tensor,
        &format!(
            "is {length} bytes at {offset} of `{location}`, which has {}",
            file.len()
        ),
    ))
}

fn external_number(tensor: &TensorProto, key: &str, default: u64) -> Result<u64> {
    let Some(text) = tensor.external(key) else {
        return Ok(default);
    };
    text.parse()
        .map_err(|_| external_problem(tensor, &format!("has {key} `{text}`, no number")))
}

fn external_problem(tensor: &TensorProto, what: &str) -> Problem {
    Problem::new(
        Code::LowerExternal,
        format!("the external data of `{}` {what}", tensor.name),
    )
}

/// Transposes a matrix `[rows, columns]` of S-byte elements to `[columns, rows]`. `fill` writes the
/// elements of a row.
pub(super) fn transposed<const S: usize>(
    rows: usize,
    columns: usize,
    mut fill: impl FnMut(usize, &mut [[u8; S]]),
) -> Vec<u8> {
    // The elements of one column in a band fill a cache line of the result.
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
            for (column, out) in out.iter_mut().enumerate() {
                *out = [row as u8, column as u8];
            }
        });
        let mut expected = vec![];
        for column in 0..columns {
            for row in 0..rows {
                expected.extend([row as u8, column as u8]);
            }
        }
        assert_eq!(bytes, expected);
    }

    #[test]
    fn codes_are_read_by_their_type() {
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
