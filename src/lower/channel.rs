//! Weights with one scale for each row, and the biases of layers that multiply codes. The device
//! requires these scales to be above zero.

use super::Lowering;
use super::stored::{Stored, transposed};
use crate::base::{Code, Problem, Result};
use crate::model::weight::blob_owner;
use crate::qnn::{DataType, Encoding, StaticData, TensorId};

/// Output channels are the last dimension of a `[1, 1, K, N]` weight.
const CHANNELS: u32 = 3;

/// A scale for each row of a weight, times a gain.
#[derive(Clone)]
pub(super) struct RowScales {
    /// `[rows]` or `[rows, 1]`.
    pub(super) scales: Stored,
    pub(super) gain: f32,
}

impl RowScales {
    fn scaled(&self) -> Result<Vec<f32>> {
        let mut scales = vec![];
        for scale in self.scales.all_numbers() {
            let scaled = scale * self.gain;
            if !scaled.is_normal() || scaled <= 0.0 {
                let owner = blob_owner(&self.scales.name);
                let what =
                    format!("a row of `{owner}` has a scale that times the gain is not above zero");
                return Err(Problem::new(Code::LowerScale, what)
                    .help("the device supports only scales above zero for whole rows"));
            }
            scales.push(scaled);
        }
        Ok(scales)
    }
}

/// A weight of signed codes.
pub(super) struct ChannelWeight {
    pub(super) codes: Stored,
    /// LPBQ: an integer for each block of a row, `[rows, blocks]`.
    pub(super) integers: Option<Stored>,
    pub(super) scales: RowScales,
}

impl ChannelWeight {
    fn note(&self) -> String {
        match &self.integers {
            Some(_) => "lpbq".into(),
            None => format!("channel {} bit", self.codes.element.bits()),
        }
    }

    fn data(&self, [rows, columns]: [usize; 2]) -> Result<StaticData> {
        let bytes = transposed(rows, columns, |row, out| {
            for (column, out) in out.iter_mut().enumerate() {
                *out = [self.codes.code(row * columns + column) as u8];
            }
        });
        let scales = self.scales.scaled()?;
        let encoding = match &self.integers {
            Some(integers) => Encoding::Expansion {
                axis: CHANNELS,
                scales,
                block_scales: integers.all_codes().map(|code| code as u8).collect(),
            },
            None => {
                let bits = self.codes.element.bits() as u32;
                Encoding::Axis {
                    bits: if bits < 8 { Some(bits) } else { None },
                    axis: CHANNELS,
                    scales,
                }
            }
        };
        Ok(StaticData { bytes, encoding })
    }
}

/// The bias of a layer that multiplies codes.
pub(super) struct CodedBias {
    pub(super) bias: Stored,
    /// The scales of its weight.
    pub(super) scales: RowScales,
    /// The scale of its input.
    pub(super) input_scale: f32,
}

impl CodedBias {
    /// 32-bit codes. The step of each is that of the products which it is added to: the scale of
    /// the input times the scale of the row. The device drops a bias with another encoding without
    /// an error.
    fn data(&self) -> Result<StaticData> {
        let mut bytes = vec![];
        let mut steps = vec![];
        for (scale, bias) in self.scales.scaled()?.iter().zip(self.bias.all_numbers()) {
            let step = self.input_scale * scale;
            let code = (f64::from(bias * self.scales.gain) / f64::from(step)).round();
            if !step.is_normal() || code.abs() > f64::from(i32::MAX) {
                let owner = blob_owner(&self.bias.name);
                let what = format!("{bias} of `{owner}` is too large for 32-bit codes of {step:e}");
                return Err(Problem::new(Code::LowerScale, what)
                    .help("`activations = \"f16\"` in the `graph` stage needs no such codes"));
            }
            bytes.extend((code as i32).to_le_bytes());
            steps.push(step);
        }
        let encoding = Encoding::Axis {
            bits: None,
            axis: 0,
            scales: steps,
        };
        Ok(StaticData { bytes, encoding })
    }
}

impl Lowering<'_> {
    pub(super) fn channel_weight(
        &mut self,
        weight: ChannelWeight,
        shape: [usize; 2],
    ) -> Result<TensorId> {
        let name = weight.codes.name.clone();
        let note = weight.note();
        self.conv_weight(&name, DataType::SFixed8, shape, &note, move || {
            weight.data(shape)
        })
    }

    pub(super) fn coded_bias(&mut self, bias: CodedBias, rows: u64) -> Result<TensorId> {
        let name = blob_owner(&bias.bias.name).to_string();
        self.static_tensor(&name, DataType::SFixed32, &[rows], "32 bit", move || {
            bias.data()
        })
    }
}
