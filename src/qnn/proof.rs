//! One matmul per weight encoding, on the simulator, against f64.
//!
//! The HTP accepts several encodings and then computes wrong numbers without a word (QNN 2.51:
//! scales in another order, blocks of 8 with LPBQ, ...), so no encoding is trusted that was not
//! seen to compute right ones.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use serde::{Deserialize, Serialize};

use super::{
    Backend, Context, DataType, DeviceGraph, Encoding, GraphOptions, HtpGraph, Node, Param, Soc,
    StaticData, Tensor, TensorKind,
};
use crate::base::{Problem, Result};

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
pub enum WeightEncoding {
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
        /// What it multiplies.
        activations: Activations,
    },
    /// `code * integer * scale`: codes of 4 bits, an integer for each `block` inputs of an output,
    /// a scale above zero for each output. It multiplies 16-bit codes only.
    Lpbq {
        /// Inputs that share an integer: 16, 32, 64 or 128.
        block: u32,
    },
}

/// What a weight multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// Halves.
    F16,
    /// 16-bit codes under one scale.
    U16,
}

impl WeightEncoding {
    /// What it multiplies.
    pub fn activations(self) -> Activations {
        match self {
            WeightEncoding::F16 | WeightEncoding::FloatBlock { .. } => Activations::F16,
            WeightEncoding::Channel { activations, .. } => activations,
            WeightEncoding::Lpbq { .. } => Activations::U16,
        }
    }

    /// Whether there is such an encoding, and the matmul has whole blocks of it.
    fn is_known(self) -> bool {
        match self {
            WeightEncoding::F16 => true,
            WeightEncoding::FloatBlock { bits, block, .. } => {
                matches!(bits, 4 | 8) && block > 0 && K.is_multiple_of(block as usize)
            }
            WeightEncoding::Channel { bits, .. } => matches!(bits, 4 | 8),
            // Blocks of 8 are accepted, and computed wrong.
            WeightEncoding::Lpbq { block } => matches!(block, 16 | 32 | 64 | 128),
        }
    }
}

impl fmt::Display for WeightEncoding {
    /// `f16`, `float-block-4x32`, `float-block-4x32-offset`, `channel-8`, `channel-8-u16`,
    /// `lpbq-32-u16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightEncoding::F16 => f.write_str("f16"),
            WeightEncoding::FloatBlock {
                bits,
                block,
                offsets,
            } => {
                write!(
                    f,
                    "float-block-{bits}x{block}{}",
                    if *offsets { "-offset" } else { "" }
                )
            }
            WeightEncoding::Channel { bits, .. } => write!(f, "channel-{bits}"),
            WeightEncoding::Lpbq { block } => write!(f, "lpbq-{block}"),
        }?;
        f.write_str(if self.activations() == Activations::U16 {
            "-u16"
        } else {
            ""
        })
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proof {
    /// Which encoding, by name.
    pub encoding: String,
    /// Which chip was simulated.
    pub soc: String,
    /// Tokens, inputs and outputs of the matmul.
    pub shape: [usize; 3],
    /// Root mean square of the error by that of the result.
    pub relative_rms_error: f64,
    /// Largest that passes.
    pub limit: f64,
}

/// Multiplies a fixed matrix in `encoding` on the simulated `soc`. One a process, like any context.
///
/// # Errors
/// The backend refuses the encoding, or it computes other numbers than the encoding says.
pub fn prove(folder: &Path, soc: Soc, encoding: WeightEncoding) -> Result<Proof> {
    if !encoding.is_known() {
        return Err(Problem::new(
            "kiln::qnn::encoding",
            format!("there is no weight encoding {encoding} on the HTP"),
        ));
    }
    let mut numbers = Numbers(1);
    let Weight { data, values } = Weight::new(encoding, &mut numbers);
    let x = Flow::new(encoding, (0..T * K).map(|_| numbers.next()).collect());
    let dot = |t: usize, n: usize| -> f64 {
        (0..K)
            .map(|k| x.values[t * K + k] * values[n * K + k])
            .sum()
    };
    let y = Flow::new(encoding, (0..T * N).map(|i| dot(i / N, i % N)).collect());

    let context = Context::new(&Backend::htp(folder, soc)?, false)?;
    let graph = matmul(encoding, data, [&x, &y]);
    let options = GraphOptions::Htp(HtpGraph {
        optimization: 3,
        vtcm_mb: 0,
    });
    let info = context
        .build(&graph, &options)
        .map_err(|problem| refused(encoding, soc, problem))?;
    let outputs = context.execute(&info, &[("x".to_string(), x.bytes())].into())?;
    let got = y.read(outputs.get("y").map_or(&[][..], Vec::as_slice));
    let error = relative_rms_error(&y.asked, &got);
    if error.is_nan() || error > MAX_ERROR {
        return Err(Problem::new(
            "kiln::qnn::encoding_wrong",
            format!(
                "HTP accepts weights as {encoding} on {} but computes wrong numbers: relative \
                 error {error:.1e}",
                soc.name
            ),
        )
        .help(
            "override the scheme of these tensors in the `requant` stage: every chip computes \
             `f16` right",
        ));
    }
    Ok(Proof {
        encoding: encoding.to_string(),
        soc: soc.name.into(),
        shape: [T, K, N],
        relative_rms_error: error,
        limit: MAX_ERROR,
    })
}

fn refused(encoding: WeightEncoding, soc: Soc, problem: Problem) -> Problem {
    problem.within(format!(
        "the HTP of {} does not take weights as {encoding}",
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

/// What flows into or out of the matmul.
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

    fn new(weight: WeightEncoding, asked: Vec<f64>) -> Self {
        let largest = asked
            .iter()
            .fold(0.0, |largest: f64, value| largest.max(value.abs()));
        let scale =
            (weight.activations() == Activations::U16).then_some((largest / 32767.0) as f32);
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

/// A weight as the device wants it, and what it means as `[N, K]`.
struct Weight {
    data: StaticData,
    values: Vec<f64>,
}

impl Weight {
    fn new(encoding: WeightEncoding, numbers: &mut Numbers) -> Self {
        match encoding {
            WeightEncoding::F16 => Weight::halves(numbers),
            WeightEncoding::FloatBlock {
                bits,
                block,
                offsets,
            } => Weight::float_block(bits, block, offsets, numbers),
            WeightEncoding::Channel { bits, .. } => {
                let scales = Weight::scales(numbers);
                let codes = Weight::codes(bits, numbers);
                let values = (0..N * K)
                    .map(|i| f64::from(codes[i]) * f64::from(scales[i / K]))
                    .collect();
                let encoding = Encoding::Axis {
                    bits: (bits < 8).then_some(bits),
                    axis: 3,
                    scales,
                };
                Weight {
                    data: StaticData {
                        bytes: bytes(&codes),
                        encoding,
                    },
                    values,
                }
            }
            WeightEncoding::Lpbq { block } => {
                let scales = Weight::scales(numbers);
                let codes = Weight::codes(4, numbers);
                let blocks = N * K / block as usize;
                let block_scales: Vec<u8> = (0..blocks)
                    .map(|_| (8.5 + 8.0 * numbers.next()) as u8)
                    .collect();
                let step = |i: usize| {
                    f64::from(block_scales[i / block as usize]) * f64::from(scales[i / K])
                };
                let values = (0..N * K).map(|i| f64::from(codes[i]) * step(i)).collect();
                let encoding = Encoding::Expansion {
                    axis: 3,
                    scales,
                    block_scales,
                };
                Weight {
                    data: StaticData {
                        bytes: bytes(&codes),
                        encoding,
                    },
                    values,
                }
            }
        }
    }

    fn halves(numbers: &mut Numbers) -> Self {
        let halves: Vec<f16> = (0..N * K).map(|_| f16::from_f64(numbers.next())).collect();
        let bytes = transposed(&halves)
            .into_iter()
            .flat_map(f16::to_le_bytes)
            .collect();
        let values = halves.into_iter().map(f16::to_f64).collect();
        Weight {
            data: StaticData {
                bytes,
                encoding: Encoding::None,
            },
            values,
        }
    }

    /// Above zero, as the device demands of a scale for each output.
    fn scales(numbers: &mut Numbers) -> Vec<f32> {
        (0..N)
            .map(|_| (0.01 + numbers.next().abs() / 100.0) as f32)
            .collect()
    }

    fn codes(bits: u32, numbers: &mut Numbers) -> Vec<i8> {
        let span = f64::from(1u32 << (bits - 1));
        (0..N * K)
            .map(|_| (numbers.next() * span).floor() as i8)
            .collect()
    }

    fn float_block(bits: u32, block: u32, offsets: bool, numbers: &mut Numbers) -> Self {
        let span = f64::from(1u32 << (bits - 1));
        let codes = Weight::codes(bits, numbers);
        let blocks = N * K / block as usize;
        // Both signs, as ggml has them; halves, as the device keeps them.
        let scales: Vec<f32> = (0..blocks)
            .map(|_| f16::from_f64(numbers.next() / span).to_f32())
            .collect();
        let offsets: Vec<f32> = (0..blocks)
            .map(|_| {
                if offsets {
                    f16::from_f64(numbers.next() * span).to_f32()
                } else {
                    0.0
                }
            })
            .collect();
        let value = |i: usize| {
            let block = i / block as usize;
            (f64::from(codes[i]) + f64::from(offsets[block])) * f64::from(scales[block])
        };
        let values = (0..N * K).map(value).collect();
        let encoding = Encoding::FloatBlock {
            bits,
            block: vec![1, 1, block, 1],
            scales,
            offsets,
        };
        Weight {
            data: StaticData {
                bytes: bytes(&codes),
                encoding,
            },
            values,
        }
    }
}

/// Codes `[N, K]` as bytes `[K, N]`.
fn bytes(codes: &[i8]) -> Vec<u8> {
    transposed(codes)
        .into_iter()
        .map(|code| code as u8)
        .collect()
}

/// `[N, K]` to `[K, N]`.
fn transposed<E: Copy>(values: &[E]) -> Vec<E> {
    (0..K * N).map(|i| values[i % N * K + i / N]).collect()
}

/// `y [1, 1, T, N] = x [1, 1, T, K] * w [1, 1, K, N]`, as a 1x1 convolution: the form of every
/// linear layer.
fn matmul(encoding: WeightEncoding, data: StaticData, [x, y]: [&Flow; 2]) -> DeviceGraph {
    let mut graph = DeviceGraph {
        name: "proof".into(),
        ..Default::default()
    };
    let tensor = |name: &str, kind, data_type, dims: [usize; 4], encoding, note: String| Tensor {
        name: name.into(),
        kind,
        data_type,
        dims: dims.iter().map(|&dim| dim as u32).collect(),
        encoding,
        note,
    };
    let (bytes, meaning) = (data.bytes, data.encoding);
    let source = TensorKind::Static(Arc::new(move || {
        Ok(StaticData {
            bytes: bytes.clone(),
            encoding: meaning.clone(),
        })
    }));
    let weight_type = if encoding == WeightEncoding::F16 {
        DataType::Float16
    } else {
        DataType::SFixed8
    };
    let x = tensor(
        "x",
        TensorKind::Input,
        x.data_type(),
        [1, 1, T, K],
        x.encoding(),
        String::new(),
    );
    let w = tensor(
        "w",
        source,
        weight_type,
        [1, 1, K, N],
        Encoding::None,
        encoding.to_string(),
    );
    let y = tensor(
        "y",
        TensorKind::Output,
        y.data_type(),
        [1, 1, T, N],
        y.encoding(),
        String::new(),
    );
    let [x, w, y] = [x, w, y].map(|tensor| graph.add(tensor));
    graph.nodes.push(Node {
        name: "linear".into(),
        op: "Conv2d",
        params: vec![
            ("stride", Param::Uint32s(vec![2], vec![1, 1])),
            ("pad_amount", Param::Uint32s(vec![2, 2], vec![0; 4])),
            ("dilation", Param::Uint32s(vec![2], vec![1, 1])),
            ("group", Param::U32(1)),
        ],
        inputs: vec![x, w],
        outputs: vec![y],
    });
    graph
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_have_names() {
        let encoding = |offsets| WeightEncoding::FloatBlock {
            bits: 4,
            block: 32,
            offsets,
        };
        let names = [WeightEncoding::F16, encoding(false), encoding(true)]
            .map(|encoding| encoding.to_string());
        assert_eq!(
            names,
            ["f16", "float-block-4x32", "float-block-4x32-offset"]
        );
    }

    #[test]
    fn errors_are_relative_and_a_nan_is_no_pass() {
        assert_eq!(relative_rms_error(&[3.0, 4.0], &[3.0, 4.5]), 0.1);
        assert!(relative_rms_error(&[1.0], &[f64::NAN]).is_nan());
        assert_eq!(relative_rms_error(&[1.0], &[]), f64::INFINITY);
    }
}
