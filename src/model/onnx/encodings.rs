//! The quantized values of a graph, found by their QuantizeLinear/DequantizeLinear pairs. Operators
//! that only move data keep the grid of their input.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::Checked;
use super::proto::{GraphProto, NodeProto, TensorProto, element};
use crate::base::{Code, Problem, Result};

/// `(code - zero_point) * scale`, codes from 0 to `2^bits - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// 8 or 16.
    pub bits: u32,
    /// The step between two codes.
    pub scale: f32,
    /// The code of 0.
    pub zero_point: u32,
}

impl Grid {
    /// The finest grid of `bits` that covers `low`, `high` and 0; `None` if they are all 0.
    pub fn over(bits: u32, low: f32, high: f32) -> Option<Grid> {
        let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
        let largest_code = f64::from((1u32 << bits) - 1);
        let scale = ((high - low) / largest_code) as f32;
        if scale <= 0.0 || !scale.is_finite() {
            return None;
        }
        let zero_point = (-low / f64::from(scale)).round();
        Some(Grid {
            bits,
            scale,
            zero_point: zero_point as u32,
        })
    }

    /// The finest grid of `bits` with 0 in its middle that covers magnitudes up to `largest`.
    pub fn symmetric(bits: u32, largest: f32) -> Option<Grid> {
        let middle = 1 << (bits - 1);
        let scale = largest / (middle - 1) as f32;
        if scale <= 0.0 || !scale.is_finite() {
            return None;
        }
        Some(Grid {
            bits,
            scale,
            zero_point: middle,
        })
    }

    /// The grid of values from 0 to 1.
    pub fn unit(bits: u32) -> Grid {
        Grid {
            bits,
            scale: 2f32.powi(-(bits as i32)),
            zero_point: 0,
        }
    }

    /// The grid of values from -1 to 1.
    pub fn signed_unit(bits: u32) -> Grid {
        Grid {
            bits,
            scale: 2f32.powi(1 - bits as i32),
            zero_point: 1 << (bits - 1),
        }
    }

    /// Whether 0 is in the middle.
    pub fn is_symmetric(&self) -> bool {
        self.zero_point == 1 << (self.bits - 1)
    }

    /// The ONNX type of its codes.
    pub fn element(&self) -> i32 {
        if self.bits == 8 {
            element::UINT8
        } else {
            element::UINT16
        }
    }

    /// The code of `value`, as QuantizeLinear computes it.
    pub fn code(&self, value: f32) -> u32 {
        let steps = (value / self.scale).round_ties_even() as i64;
        let largest_code = (1i64 << self.bits) - 1;
        let code = steps.saturating_add(self.zero_point.into());
        code.clamp(0, largest_code) as u32
    }

    /// Mean square of the rounding error.
    pub fn noise(&self) -> f64 {
        f64::from(self.scale).powi(2) / 12.0
    }
}

/// A QuantizeLinear and the DequantizeLinear that reads its codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair<'a> {
    /// The value between them.
    pub codes: &'a str,
    /// The output of DequantizeLinear.
    pub dequantized: &'a str,
    /// The grid of both.
    pub grid: Grid,
}

/// The quantized values of a graph.
#[derive(Debug, Default)]
pub struct Encodings<'a> {
    /// The grids of float values that lie on one.
    pub grids: HashMap<&'a str, Grid>,
    /// By the value that is rounded.
    pub pairs: HashMap<&'a str, Pair<'a>>,
    /// How many nodes read a value.
    pub readers: HashMap<&'a str, usize>,
    /// The outputs of the graph.
    outputs: HashSet<&'a str>,
}

impl<'a> Encodings<'a> {
    /// The quantized values of `checked`. Rejects codes that are not read by exactly one
    /// DequantizeLinear with the same grid.
    pub fn of(checked: &Checked<'a>) -> Result<Self> {
        let graph = checked.graph;
        let mut encodings = Encodings {
            readers: readers(graph),
            ..Encodings::default()
        };
        for output in &graph.output {
            encodings.outputs.insert(&output.name);
        }
        let mut codes: HashMap<&str, (&str, Grid)> = HashMap::new();
        for node in &graph.node {
            match (
                node.op_type.as_str(),
                node.input.as_slice(),
                node.output.as_slice(),
            ) {
                ("QuantizeLinear", [value, ..], [to]) if node.domain.is_empty() => {
                    codes.insert(to, (value, read_grid(checked, node)?));
                }
                ("DequantizeLinear", [from, ..], [dequantized]) if node.domain.is_empty() => {
                    let grid = read_grid(checked, node)?;
                    let Some(&(value, quantize_grid)) = codes.get(from.as_str()) else {
                        return Err(invalid(node, "reads codes that no QuantizeLinear makes"));
                    };
                    if quantize_grid != grid {
                        return Err(invalid(
                            node,
                            "has another scale or zero point than the QuantizeLinear before it",
                        ));
                    }
                    let pair = Pair {
                        codes: from,
                        dequantized,
                        grid,
                    };
                    if encodings.pairs.insert(value, pair).is_some() {
                        return Err(invalid(
                            node,
                            "is the second to give codes of the same value",
                        ));
                    }
                    encodings.grids.insert(dequantized, grid);
                }
                _ => {
                    if let Some(grid) = encodings.common_grid(moved(node)) {
                        for name in &node.output {
                            encodings.grids.insert(name, grid);
                        }
                    }
                }
            }
        }
        Ok(encodings)
    }

    /// Whether the float value `name` lies on a grid.
    pub fn is_on_grid(&self, name: &str) -> bool {
        self.grids.contains_key(name)
    }

    /// The grid of a value that only QuantizeLinear reads. Other readers would need the unrounded
    /// value.
    pub fn only_rounded(&self, name: &str) -> Option<Grid> {
        let is_output = self.outputs.contains(name);
        if is_output || self.readers.get(name) != Some(&1) {
            return None;
        }
        self.pairs.get(name).map(|pair| pair.grid)
    }

    /// The grid of the only output of `node`, if only QuantizeLinear reads it.
    pub fn result_grid(&self, node: &NodeProto) -> Option<Grid> {
        match node.output.as_slice() {
            [output] => self.only_rounded(output),
            _ => None,
        }
    }

    /// The grid of the codes that the embedding `node` looks up; `None` if it looks up numbers.
    pub fn lookup_grid(&self, node: &NodeProto) -> Option<Grid> {
        self.result_grid(node).filter(|grid| grid.bits == 16)
    }

    /// Whether the norm `node` computes on codes.
    pub fn norm_on_codes(&self, node: &NodeProto) -> bool {
        let reads_codes = node.input.first().is_some_and(|x| self.is_on_grid(x));
        reads_codes && self.result_grid(node).is_some()
    }

    /// The grid of `values`, if all of them have the same.
    fn common_grid(&self, values: &[String]) -> Option<Grid> {
        let (first, others) = values.split_first()?;
        let grid = self.grids.get(first.as_str())?;
        for other in others {
            if self.grids.get(other.as_str()) != Some(grid) {
                return None;
            }
        }
        Some(*grid)
    }
}

/// The inputs whose elements `node` moves unchanged to its outputs; empty if it computes.
pub fn moved(node: &NodeProto) -> &[String] {
    let inputs = node.input.as_slice();
    match node.op_type.as_str() {
        _ if !node.domain.is_empty() => &[],
        "Concat" => inputs,
        "Reshape" | "Transpose" | "Split" | "Slice" | "Gather" | "Squeeze" | "Unsqueeze" => {
            inputs.get(..1).unwrap_or(&[])
        }
        _ => &[],
    }
}

fn readers(graph: &GraphProto) -> HashMap<&str, usize> {
    let mut readers = HashMap::new();
    for node in &graph.node {
        for name in &node.input {
            *readers.entry(name.as_str()).or_default() += 1;
        }
    }
    readers
}

/// The grid that the scale and the zero point of `node` define. Both are constants of one element.
fn read_grid(checked: &Checked, node: &NodeProto) -> Result<Grid> {
    let [_, scale, zero_point] = node.input.as_slice() else {
        return Err(invalid(node, "lacks its scale or zero point"));
    };
    let scale = checked.initializers.get(scale.as_str());
    let zero_point = checked.initializers.get(zero_point.as_str());
    if let (Some(scale), Some(zero_point)) = (scale, zero_point)
        && let Some(grid) = constant_grid(scale, zero_point)
    {
        return Ok(grid);
    }
    Err(invalid(
        node,
        "must have one f32 as its scale and one u8 or u16 as its zero point, both constants",
    ))
}

fn constant_grid(scale: &TensorProto, zero_point: &TensorProto) -> Option<Grid> {
    if scale.data_type != element::FLOAT {
        return None;
    }
    let scale = match (scale.raw_data.as_slice(), scale.float_data.as_slice()) {
        (&[a, b, c, d], _) => f32::from_le_bytes([a, b, c, d]),
        (_, &[value]) => value,
        _ => return None,
    };
    let bits = match zero_point.data_type {
        element::UINT8 => 8,
        element::UINT16 => 16,
        _ => return None,
    };
    Some(Grid {
        bits,
        scale,
        zero_point: code(zero_point)?,
    })
}

/// The only element of a u8 or u16 tensor.
fn code(tensor: &TensorProto) -> Option<u32> {
    match *tensor.raw_data.as_slice() {
        [byte] => Some(byte.into()),
        [low, high] => Some(u16::from_le_bytes([low, high]).into()),
        _ => u32::try_from(*tensor.int32_data.first()?).ok(),
    }
}

fn invalid(node: &NodeProto, why: &str) -> Problem {
    Problem::new(
        Code::OnnxEncoding,
        format!("{} `{}` {why}", node.op_type, node.name),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_cover_both_limits_and_zero() {
        let grid = Grid::over(16, -1.0, 3.0).unwrap();
        assert_eq!((grid.scale, grid.zero_point), (4.0 / 65535.0, 16384));
        assert_eq!(
            Grid::over(8, 2.0, 5.1).unwrap(),
            Grid {
                bits: 8,
                scale: 5.1 / 255.0,
                zero_point: 0
            }
        );
        assert_eq!(Grid::over(16, 0.0, 0.0), None);
        assert_eq!(
            Grid::symmetric(8, 12.7).unwrap(),
            Grid {
                bits: 8,
                scale: 12.7 / 127.0,
                zero_point: 128
            }
        );
        assert!(Grid::symmetric(16, 1.0).unwrap().is_symmetric());
        assert_eq!(Grid::unit(16).scale, 1.0 / 65536.0);
    }

    #[test]
    fn codes_are_rounded_to_even_and_saturate() {
        let grid = Grid {
            bits: 8,
            scale: 0.5,
            zero_point: 3,
        };
        let codes = [0.0, 0.75, 1.25, -0.25, -9.0, 1e30].map(|value| grid.code(value));
        assert_eq!(codes, [3, 5, 5, 3, 0, 255]);
    }
}
