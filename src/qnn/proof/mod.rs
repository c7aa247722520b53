//! Tests a use of a weight with a small graph on the simulator, and compares the result with f64.
//!
//! The HTP accepts several encodings and then computes wrong numbers without an error (QNN 2.51:
//! scales in another order, blocks of 8 with LPBQ, ...), so every encoding is tested before it is
//! used.

mod graphs;
mod weight;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use half::f16;
use serde::{Deserialize, Serialize};

use super::{Backend, Context, DataType, DeviceGraph, Encoding, GraphOptions, HtpGraph, Soc};
use crate::base::{Code, Problem, Result};

/// Largest relative rms error of a correct encoding. fp16 arithmetic causes about 3e-4, offsets up
/// to 1.9e-3; the error of a wrong encoding is 2e-1 or more.
const MAX_ERROR: f64 = 2e-3;

/// Tokens, inputs and outputs of the matmul: several blocks along the inputs, several vectors along
/// the outputs.
const T: usize = 4;
const K: usize = 512;
const N: usize = 64;

/// How a weight is stored in a graph for the HTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceEncoding {
    /// f16 values.
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

/// The types of the input, the arithmetic and the output of a linear layer on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinearIo {
    /// It reads, computes in and writes f16.
    F16,
    /// It computes in f16 between a Dequantize of 16-bit codes and a Quantize to them.
    F16FromU16,
    /// It multiplies 16-bit codes with one scale per tensor.
    U16,
}

/// A use of a weight in a graph for the HTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum DeviceUse {
    /// Multiplies activations with it.
    Linear {
        /// How it is stored.
        weight: DeviceEncoding,
        /// The types of input and output.
        io: LinearIo,
    },
    /// Looks up its rows in tables of codes, scales and offsets, and multiplies and adds in f16:
    /// `code * scale + offset`. Rows of f16 are looked up as they are.
    Lookup {
        /// How it is stored.
        weight: DeviceEncoding,
    },
    /// Looks up its rows in a table of 16-bit codes with one scale.
    LookupU16,
}

impl DeviceEncoding {
    /// Whether there is such an encoding, and its blocks fit the matrix.
    fn is_valid(self) -> bool {
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
    /// Whether the device supports it.
    fn is_valid(self) -> bool {
        use DeviceEncoding::{Channel, F16, FloatBlock, Lpbq};
        match self {
            DeviceUse::Linear { weight, io } => {
                let reads_f16 = matches!(weight, F16 | FloatBlock { .. } | Channel { .. });
                let reads_codes = matches!(weight, Channel { .. } | Lpbq { .. });
                let fits = match io {
                    LinearIo::F16 | LinearIo::F16FromU16 => reads_f16,
                    LinearIo::U16 => reads_codes,
                };
                weight.is_valid() && fits
            }
            DeviceUse::Lookup { weight } => weight.is_valid(),
            DeviceUse::LookupU16 => true,
        }
    }

    /// Whether its weights are in blocks with scales in fp16.
    pub fn has_float_blocks(self) -> bool {
        match self {
            DeviceUse::Linear { weight, .. } | DeviceUse::Lookup { weight } => {
                matches!(weight, DeviceEncoding::FloatBlock { .. })
            }
            DeviceUse::LookupU16 => false,
        }
    }

    /// Whether it needs fp16.
    pub fn computes_in_f16(self) -> bool {
        match self {
            DeviceUse::Linear { io, .. } => io != LinearIo::U16,
            DeviceUse::Lookup { .. } => true,
            DeviceUse::LookupU16 => false,
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
    /// `float-block-4x32`, `float-block-4x32-from-u16`, `channel-8-u16`, `lookup-float-block-8x32`,
    /// `lookup-u16`.
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
            DeviceUse::LookupU16 => f.write_str("lookup-u16"),
        }
    }
}

/// The result of a test.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proof {
    /// The name of the use of a weight.
    pub encoding: String,
    /// The simulated chip.
    pub soc: String,
    /// Tokens, inputs and outputs of the matmul; tokens, columns and rows of a lookup.
    pub shape: [usize; 3],
    /// Root mean square of the error divided by that of the result.
    pub relative_rms_error: f64,
    /// Largest error that passes.
    pub limit: f64,
}

/// A graph with one output `y`, its inputs, and the expected output.
struct Trial {
    graph: DeviceGraph,
    inputs: BTreeMap<String, Vec<u8>>,
    y: Activation,
}

/// Tests `case` with a fixed matrix on the simulated `soc`. Only one test can run in a process, as
/// for any context.
///
/// # Errors
/// The backend rejects the encoding, or computes wrong numbers with it.
pub fn prove(folder: &Path, soc: Soc, case: DeviceUse) -> Result<Proof> {
    if !case.is_valid() {
        return Err(Problem::new(
            Code::QnnEncoding,
            format!("there is no weight encoding {case} on the HTP"),
        ));
    }
    if case.computes_in_f16() {
        soc.require_f16(&format!("a weight as {case}"))?;
    }
    let Trial { graph, inputs, y } = match case {
        DeviceUse::Linear { weight, io } => Trial::linear(weight, io),
        DeviceUse::Lookup { weight } => Trial::lookup(weight),
        DeviceUse::LookupU16 => Trial::lookup_u16(),
    };
    let context = Context::new(&Backend::htp(folder, soc)?, false)?;
    let options = GraphOptions::Htp(HtpGraph::default());
    let info = context.build(&graph, &options).map_err(|problem| {
        problem.within(format!("the HTP of {soc} does not take weights as {case}"))
    })?;
    let mut outputs = context.execute(&info, &inputs)?;
    let computed = y.decode(&outputs.remove("y").unwrap_or_default());
    let error = relative_rms_error(&y.exact, &computed);
    if error.is_nan() || error > MAX_ERROR {
        return Err(Problem::new(
            Code::QnnEncodingWrong,
            format!(
                "HTP accepts weights as {case} on {soc} but computes wrong numbers: relative error \
                 {error:.1e}"
            ),
        )
        .help(
            "override the scheme of these tensors in the `requant` stage: every chip with fp16 \
             computes `f16` right",
        ));
    }
    Ok(Proof {
        encoding: case.to_string(),
        soc: soc.name().into(),
        shape: [T, K, N],
        relative_rms_error: error,
        limit: MAX_ERROR,
    })
}

/// Root mean square of `found - expected` divided by that of `expected`; infinite if they differ in
/// length.
pub fn relative_rms_error(expected: &[f64], found: &[f64]) -> f64 {
    if expected.len() != found.len() {
        return f64::INFINITY;
    }
    let (mut error, mut signal) = (0.0, 0.0);
    for (expected, found) in expected.iter().zip(found) {
        error += (found - expected) * (found - expected);
        signal += expected * expected;
    }
    f64::sqrt(error / signal)
}

/// A fixed sequence of numbers in [-1, 1), by splitmix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn take(&mut self, count: usize) -> Vec<f64> {
        let mut numbers = vec![];
        for _ in 0..count {
            numbers.push(self.next());
        }
        numbers
    }
}

/// The values of an input or output of a graph.
struct Activation {
    /// The values before rounding.
    exact: Vec<f64>,
    /// The values rounded to the type of the tensor.
    values: Vec<f64>,
    /// Step of the 16-bit codes; `None` for f16.
    scale: Option<f32>,
}

impl Activation {
    /// The zero point, in the middle of the codes: MatMul requires it of its second operand.
    const ZERO: i32 = 32768;

    fn new(is_coded: bool, exact: Vec<f64>) -> Self {
        let mut scale = None;
        if is_coded {
            let mut largest: f64 = 0.0;
            for value in &exact {
                largest = largest.max(value.abs());
            }
            scale = Some((largest / 32767.0) as f32);
        }
        let mut activation = Activation {
            exact,
            values: vec![],
            scale,
        };
        activation.values = activation.decode(&activation.bytes());
        activation
    }

    fn data_type(&self) -> DataType {
        if self.scale.is_some() {
            DataType::UFixed16
        } else {
            DataType::Float16
        }
    }

    fn encoding(&self) -> Encoding {
        match self.scale {
            Some(scale) => Encoding::ScaleOffset {
                scale,
                offset: -Self::ZERO,
            },
            None => Encoding::None,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![];
        for &value in &self.exact {
            let bits = match self.scale {
                Some(scale) => {
                    let code = (value / f64::from(scale)).round() as i32 + Self::ZERO;
                    code.clamp(0, 65535) as u16
                }
                None => f16::from_f64(value).to_bits(),
            };
            bytes.extend(bits.to_le_bytes());
        }
        bytes
    }

    fn decode(&self, bytes: &[u8]) -> Vec<f64> {
        let mut values = vec![];
        for pair in bytes.chunks_exact(2) {
            let bits = u16::from_le_bytes([pair[0], pair[1]]);
            values.push(match self.scale {
                Some(scale) => f64::from(i32::from(bits) - Self::ZERO) * f64::from(scale),
                None => f16::from_bits(bits).to_f64(),
            });
        }
        values
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
        let cases = [
            linear(DeviceEncoding::F16, LinearIo::F16),
            linear(weight(false), LinearIo::F16),
            linear(weight(true), LinearIo::F16FromU16),
            linear(DeviceEncoding::Channel { bits: 8 }, LinearIo::U16),
            linear(DeviceEncoding::Lpbq { block: 32 }, LinearIo::U16),
            DeviceUse::Lookup {
                weight: weight(false),
            },
            DeviceUse::LookupU16,
        ];
        for case in cases {
            assert!(case.is_valid(), "{case}");
        }
        assert_eq!(
            cases.map(|case| case.to_string()),
            [
                "f16",
                "float-block-4x32",
                "float-block-4x32-offset-from-u16",
                "channel-8-u16",
                "lpbq-32-u16",
                "lookup-float-block-4x32",
                "lookup-u16"
            ]
        );
        assert!(!linear(weight(false), LinearIo::U16).is_valid());
        assert!(!linear(DeviceEncoding::Lpbq { block: 32 }, LinearIo::F16).is_valid());
        assert!(!linear(DeviceEncoding::Lpbq { block: 8 }, LinearIo::U16).is_valid());
    }

    #[test]
    fn errors_are_relative_and_nan_stays_nan() {
        assert_eq!(relative_rms_error(&[3.0, 4.0], &[3.0, 4.5]), 0.1);
        assert!(relative_rms_error(&[1.0], &[f64::NAN]).is_nan());
        assert_eq!(relative_rms_error(&[1.0], &[]), f64::INFINITY);
    }
}
