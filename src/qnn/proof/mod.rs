//! A small graph for each use of a weight, on the simulator, against f64.
//!
//! The HTP accepts several encodings and then computes wrong numbers without a word (QNN 2.51:
//! scales in another order, blocks of 8 with LPBQ, ...), so no encoding is trusted that was not
//! seen to compute right ones.

mod graphs;
mod weight;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use half::f16;
use serde::{Deserialize, Serialize};

use super::{Backend, Context, DataType, DeviceGraph, Encoding, GraphOptions, HtpGraph, Soc};
use crate::base::{Code, Problem, Result};

/// Largest relative rms error of an encoding that computes what it says. fp16 arithmetic alone
/// gives about 3e-4, offsets up to 1.9e-3; a wrong encoding is off by 2e-1 and more.
pub const MAX_ERROR: f64 = 2e-3;

/// Tokens, inputs and outputs of the matmul: several blocks along the inputs, several vectors along
/// the outputs.
const T: usize = 4;
const K: usize = 512;
const N: usize = 64;

/// How a weight lies in a graph for the HTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceEncoding {
    /// Halves.
    F16,
    /// `(code + offset) * scale`, a scale for each `block` inputs of an output.
    FloatBlock {
        /// Bits of a code: 4 or 8.
        bits: u32,
        /// Inputs that share a scale.
        block: u32,
        /// Whether blocks have offsets.
        offsets: bool,
    },
    /// `code * scale`, a scale above zero for each output.
    Channel {
        /// Bits of a code: 4 or 8.
        bits: u32,
    },
    /// `code * integer * scale`: codes of 4 bits, an integer for each `block` inputs of an output,
    /// a scale above zero for each output. It multiplies 16-bit codes only.
    Lpbq {
        /// Inputs that share an integer: 16, 32, 64 or 128.
        block: u32,
    },
}

/// What a linear layer of the device reads and writes, and what it computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinearIo {
    /// It reads, computes in and writes f16.
    F16,
    /// It computes in f16 between a Dequantize of 16-bit codes and a Quantize to them.
    F16FromU16,
    /// It multiplies 16-bit codes, each under one scale.
    U16,
}

/// What a graph for the HTP does with a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum DeviceUse {
    /// Multiplies activations with it.
    Linear {
        /// How it lies in the graph.
        weight: DeviceEncoding,
        /// What the layer reads and writes.
        io: LinearIo,
    },
    /// Looks up its rows in tables of codes, scales and offsets, and multiplies and adds in f16:
    /// `code * scale + offset`. Rows of f16 are looked up as they are.
    Lookup {
        /// How it is stored.
        weight: DeviceEncoding,
    },
}

impl DeviceEncoding {
    /// Whether there is such an encoding, and the matrix has whole blocks of it.
    fn is_known(self) -> bool {
        match self {
            DeviceEncoding::F16 => true,
            DeviceEncoding::FloatBlock { bits, block, .. } => {
                matches!(bits, 4 | 8) && block > 0 && K.is_multiple_of(block as usize)
            }
            DeviceEncoding::Channel { bits } => matches!(bits, 4 | 8),
            // Blocks of 8 are accepted, and computed wrong.
            DeviceEncoding::Lpbq { block } => matches!(block, 16 | 32 | 64 | 128),
        }
    }
}

impl DeviceUse {
    /// Whether the device can be asked for it.
    fn is_known(self) -> bool {
        use DeviceEncoding::{Channel, F16, FloatBlock, Lpbq};
        match self {
            DeviceUse::Linear { weight, io } => {
                let reads_f16 = matches!(weight, F16 | FloatBlock { .. } | Channel { .. });
                let reads_codes = matches!(weight, Channel { .. } | Lpbq { .. });
                let fits = match io {
                    LinearIo::F16 | LinearIo::F16FromU16 => reads_f16,
                    LinearIo::U16 => reads_codes,
                };
                weight.is_known() && fits
            }
            DeviceUse::Lookup { weight } => weight.is_known(),
        }
    }
}

impl fmt::Display for DeviceEncoding {
    /// `f16`, `float-block-4x32`, `float-block-4x32-offset`, `channel-8`, `lpbq-32`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceEncoding::F16 => f.write_str("f16"),
            DeviceEncoding::FloatBlock {
                bits,
                block,
                offsets,
            } => {
                let offset = if *offsets { "-offset" } else { "" };
                write!(f, "float-block-{bits}x{block}{offset}")
            }
            DeviceEncoding::Channel { bits } => write!(f, "channel-{bits}"),
            DeviceEncoding::Lpbq { block } => write!(f, "lpbq-{block}"),
        }
    }
}

impl fmt::Display for DeviceUse {
    /// `float-block-4x32`, `float-block-4x32-from-u16`, `channel-8-u16`, `lookup-float-block-8x32`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceUse::Linear { weight, io } => {
                let io = match io {
                    LinearIo::F16 => "",
                    LinearIo::F16FromU16 => "-from-u16",
                    LinearIo::U16 => "-u16",
                };
                write!(f, "{weight}{io}")
            }
            DeviceUse::Lookup { weight } => write!(f, "lookup-{weight}"),
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proof {
    /// Which use of a weight, by name.
    pub encoding: String,
    /// Which chip was simulated.
    pub soc: String,
    /// Tokens, inputs and outputs of the matmul; tokens, columns and rows of a lookup.
    pub shape: [usize; 3],
    /// Root mean square of the error by that of the result.
    pub relative_rms_error: f64,
    /// Largest that passes.
    pub limit: f64,
}

/// A graph with one output `y`, what it is given, and what it should compute.
struct Trial {
    graph: DeviceGraph,
    inputs: BTreeMap<String, Vec<u8>>,
    y: Flow,
}

/// Has the simulated `soc` use a fixed matrix as `case` says. One a process, like any context.
///
/// # Errors
/// The backend refuses the encoding, or it computes other numbers than the encoding says.
pub fn prove(folder: &Path, soc: Soc, case: DeviceUse) -> Result<Proof> {
    if !case.is_known() {
        return Err(Problem::new(
            Code::QnnEncoding,
            format!("there is no weight encoding {case} on the HTP"),
        ));
    }
    let Trial { graph, inputs, y } = match case {
        DeviceUse::Linear { weight, io } => Trial::linear(weight, io),
        DeviceUse::Lookup { weight } => Trial::lookup(weight),
    };
    let context = Context::new(&Backend::htp(folder, soc)?, false)?;
    let options = GraphOptions::Htp(HtpGraph {
        optimization: 3,
        vtcm_mb: 0,
    });
    let info = context
        .build(&graph, &options)
        .map_err(|problem| refused(case, soc, problem))?;
    let outputs = context.execute(&info, &inputs)?;
    let got = y.read(outputs.get("y").map_or(&[][..], Vec::as_slice));
    let error = relative_rms_error(&y.asked, &got);
    if error.is_nan() || error > MAX_ERROR {
        return Err(Problem::new(
            Code::QnnEncodingWrong,
            format!(
                "HTP accepts weights as {case} on {} but computes wrong numbers: relative error \
                 {error:.1e}",
                soc.name
            ),
        )
        .help(
            "override the scheme of these tensors in the `requant` stage: every chip computes \
             `f16` right",
        ));
    }
    Ok(Proof {
        encoding: case.to_string(),
        soc: soc.name.into(),
        shape: [T, K, N],
        relative_rms_error: error,
        limit: MAX_ERROR,
    })
}

fn refused(case: DeviceUse, soc: Soc, problem: Problem) -> Problem {
    problem.within(format!(
        "the HTP of {} does not take weights as {case}",
        soc.name
    ))
}

/// Root mean square of `got - expected` by that of `expected`; infinite if they differ in length.
pub fn relative_rms_error(expected: &[f64], got: &[f64]) -> f64 {
    if expected.len() != got.len() {
        return f64::INFINITY;
    }
    let error: f64 = expected
        .iter()
        .zip(got)
        .map(|(e, g)| (g - e) * (g - e))
        .sum();
    let signal: f64 = expected.iter().map(|e| e * e).sum();
    (error / signal).sqrt()
}

/// The same numbers for ever: in [-1, 1), by splitmix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Numbers that flow into or out of a graph.
struct Flow {
    /// The numbers asked for.
    asked: Vec<f64>,
    /// Those numbers as the device holds them.
    values: Vec<f64>,
    /// Step of the 16-bit codes; none of halves.
    scale: Option<f32>,
}

impl Flow {
    /// Zero of the codes, in the middle: a second operand of the device's MatMul must be so.
    const ZERO: i32 = 32768;

    fn new(is_coded: bool, asked: Vec<f64>) -> Self {
        let largest = asked
            .iter()
            .fold(0.0, |largest: f64, value| largest.max(value.abs()));
        let scale = is_coded.then_some((largest / 32767.0) as f32);
        let mut all = Flow {
            asked,
            values: vec![],
            scale,
        };
        all.values = all.read(&all.bytes());
        all
    }

    fn data_type(&self) -> DataType {
        if self.scale.is_some() {
            DataType::UFixed16
        } else {
            DataType::Float16
        }
    }

    fn encoding(&self) -> Encoding {
        self.scale
            .map_or(Encoding::None, |scale| Encoding::ScaleOffset {
                scale,
                offset: -Self::ZERO,
            })
    }

    fn bytes(&self) -> Vec<u8> {
        let spell = |value: &f64| match self.scale {
            Some(scale) => {
                ((value / f64::from(scale)).round() as i32 + Self::ZERO).clamp(0, 65535) as u16
            }
            None => f16::from_f64(*value).to_bits(),
        };
        self.asked
            .iter()
            .flat_map(|value| spell(value).to_le_bytes())
            .collect()
    }

    fn read(&self, bytes: &[u8]) -> Vec<f64> {
        let number = |bits: u16| match self.scale {
            Some(scale) => f64::from(i32::from(bits) - Self::ZERO) * f64::from(scale),
            None => f16::from_bits(bits).to_f64(),
        };
        bytes
            .chunks_exact(2)
            .map(|pair| number(u16::from_le_bytes([pair[0], pair[1]])))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_have_names() {
        let weight = |offsets| DeviceEncoding::FloatBlock {
            bits: 4,
            block: 32,
            offsets,
        };
        let linear = |weight, io| DeviceUse::Linear { weight, io };
        let names = [
            linear(DeviceEncoding::F16, LinearIo::F16),
            linear(weight(false), LinearIo::F16),
            linear(weight(true), LinearIo::F16FromU16),
            linear(DeviceEncoding::Channel { bits: 8 }, LinearIo::U16),
            linear(DeviceEncoding::Lpbq { block: 32 }, LinearIo::U16),
            DeviceUse::Lookup {
                weight: weight(false),
            },
        ]
        .map(|case| {
            assert!(case.is_known(), "{case}");
            case.to_string()
        });
        assert_eq!(
            names,
            [
                "f16",
                "float-block-4x32",
                "float-block-4x32-offset-from-u16",
                "channel-8-u16",
                "lpbq-32-u16",
                "lookup-float-block-4x32"
            ]
        );
        assert!(!linear(weight(false), LinearIo::U16).is_known());
        assert!(!linear(DeviceEncoding::Lpbq { block: 32 }, LinearIo::F16).is_known());
        assert!(!linear(DeviceEncoding::Lpbq { block: 8 }, LinearIo::U16).is_known());
    }

    #[test]
    fn errors_are_relative_and_a_nan_is_no_pass() {
        assert_eq!(relative_rms_error(&[3.0, 4.0], &[3.0, 4.5]), 0.1);
        assert!(relative_rms_error(&[1.0], &[f64::NAN]).is_nan());
        assert_eq!(relative_rms_error(&[1.0], &[]), f64::INFINITY);
    }
}
