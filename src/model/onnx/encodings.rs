//! Quantized values: which of a graph's values lie on a grid of codes, told by
//! QuantizeLinear/DequantizeLinear pairs.
//!
//! Operators that only move data keep the grid of what they read.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Checked;
use super::proto::{GraphProto, NodeProto, TensorProto, element};
use crate::base::{Code, Problem, Result};

/// `(code - zero_point) * scale`, codes from 0 to `2^bits - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// 8 or 16.
    pub bits: u32,
    /// The distance of two codes.
    pub scale: f32,
    /// The code of 0.
    pub zero_point: u32,
}

impl Grid {
    /// The finest grid of `bits` that holds `low`, `high` and 0; none, if they are all 0.
    pub fn over(bits: u32, low: f32, high: f32) -> Option<Grid> {
        let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
        let scale = ((high - low) / Self::last(bits)) as f32;
        let zero_point = (-low / f64::from(scale)).round();
        (scale > 0.0 && scale.is_finite()).then_some(Grid {
            bits,
            scale,
            zero_point: zero_point as u32,
        })
    }

    /// The finest grid of `bits` with 0 in its middle that holds magnitudes up to `largest`.
    pub fn symmetric(bits: u32, largest: f32) -> Option<Grid> {
        let middle = 1 << (bits - 1);
        let scale = largest / (middle - 1) as f32;
        (scale > 0.0 && scale.is_finite()).then_some(Grid {
            bits,
            scale,
            zero_point: middle,
        })
    }

    /// The grid of what lies between 0 and 1.
    pub fn unit(bits: u32) -> Grid {
        Grid {
            bits,
            scale: 2f32.powi(-(bits as i32)),
            zero_point: 0,
        }
    }

    /// Whether 0 is in the middle.
    pub fn is_symmetric(&self) -> bool {
        self.zero_point == 1 << (self.bits - 1)
    }

    /// The type of its codes.
    pub fn element(&self) -> i32 {
        if self.bits == 8 {
            element::UINT8
        } else {
            element::UINT16
        }
    }

    /// Mean square of the rounding error.
    pub fn noise(&self) -> f64 {
        f64::from(self.scale).powi(2) / 12.0
    }

    fn last(bits: u32) -> f64 {
        f64::from((1u32 << bits) - 1)
    }
}

/// A QuantizeLinear and the DequantizeLinear that reads its codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair<'a> {
    /// The value between them.
    pub codes: &'a str,
    /// What DequantizeLinear gives.
    pub held: &'a str,
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
}

impl<'a> Encodings<'a> {
    /// The quantized values of `checked`; refuses codes that do anything but wait for their
    /// DequantizeLinear.
    pub fn of(checked: &Checked<'a>) -> Result<Self> {
        let graph = checked.graph;
        let mut encodings = Encodings {
            readers: readers(graph),
            ..Encodings::default()
        };
        let mut codes: HashMap<&str, (&str, Grid)> = HashMap::new();
        for node in &graph.node {
            match (
                node.op_type.as_str(),
                node.input.as_slice(),
                node.output.as_slice(),
            ) {
                ("QuantizeLinear", [value, ..], [to]) if node.domain.is_empty() => {
                    codes.insert(to, (value, grid(checked, node)?));
                }
                ("DequantizeLinear", [from, ..], [held]) if node.domain.is_empty() => {
                    let grid = grid(checked, node)?;
                    let (value, theirs) = *codes
                        .get(from.as_str())
                        .ok_or_else(|| odd(node, "reads codes that no QuantizeLinear makes"))?;
                    if theirs != grid {
                        return Err(odd(
                            node,
                            "has another scale or zero point than the QuantizeLinear before it",
                        ));
                    }
                    if encodings
                        .pairs
                        .insert(
                            value,
                            Pair {
                                codes: from,
                                held,
                                grid,
                            },
                        )
                        .is_some()
                    {
                        return Err(odd(node, "is the second to give codes of the same value"));
                    }
                    encodings.grids.insert(held, grid);
                }
                _ => {
                    let mut grids = moved(node)
                        .iter()
                        .map(|name| encodings.grids.get(name.as_str()).copied());
                    let first = grids.next().flatten();
                    if let Some(grid) = first.filter(|_| grids.all(|other| other == first)) {
                        encodings
                            .grids
                            .extend(node.output.iter().map(|name| (name.as_str(), grid)));
                    }
                }
            }
        }
        Ok(encodings)
    }
}

/// The inputs of `node` that it passes on as they are, if it does nothing else.
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
    for name in graph.node.iter().flat_map(|node| &node.input) {
        *readers.entry(name.as_str()).or_default() += 1;
    }
    readers
}

/// Scale and zero point: a number each, written into the graph.
fn grid(checked: &Checked, node: &NodeProto) -> Result<Grid> {
    let [_, scale, zero_point] = node.input.as_slice() else {
        return Err(odd(node, "lacks its scale or zero point"));
    };
    let constant = |name: &String| checked.initializers.get(name.as_str()).copied();
    let scale = constant(scale)
        .filter(|tensor| tensor.data_type == element::FLOAT)
        .and_then(|tensor| {
            let raw = <[u8; 4]>::try_from(tensor.raw_data.as_slice())
                .map(f32::from_le_bytes)
                .ok();
            raw.or_else(|| {
                tensor
                    .float_data
                    .first()
                    .copied()
                    .filter(|_| tensor.float_data.len() == 1)
            })
        });
    let zero_point = constant(zero_point).and_then(|tensor| Some((bits(tensor)?, code(tensor)?)));
    match (scale, zero_point) {
        (Some(scale), Some((bits, zero_point))) => Ok(Grid {
            bits,
            scale,
            zero_point,
        }),
        _ => Err(odd(
            node,
            "must have one f32 as its scale and one u8 or u16 as its zero point, both constants",
        )),
    }
}

fn bits(tensor: &TensorProto) -> Option<u32> {
    match tensor.data_type {
        element::UINT8 => Some(8),
        element::UINT16 => Some(16),
        _ => None,
    }
}

fn code(tensor: &TensorProto) -> Option<u32> {
    match *tensor.raw_data.as_slice() {
        [byte] => Some(byte.into()),
        [low, high] => Some(u16::from_le_bytes([low, high]).into()),
        _ => tensor
            .int32_data
            .first()
            .and_then(|&code| u32::try_from(code).ok()),
    }
}

fn odd(node: &NodeProto, why: &str) -> Problem {
    Problem::new(
        Code::OnnxEncoding,
        format!("{} `{}` {why}", node.op_type, node.name),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_hold_their_ends_and_zero() {
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
}
