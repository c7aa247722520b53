//! Weights under one scale a row: signed codes as they are for a matrix of halves or of 16-bit
//! codes; LPBQ as it is for 16-bit codes only. The device wants these scales above zero.

use super::Lowering;
use super::grid::Grid;
use super::linear::{BlockWeight, conv_dims};
use super::stored::{Stored, transposed};
use crate::base::{Problem, Result};
use crate::model::facts::blob_owner;
use crate::model::onnx::Spelling;
use crate::model::onnx::proto::{NodeProto, element};
use crate::qnn::{DataType, Encoding, StaticData, TensorId};

/// Output channels are the last dimension of a `[1, 1, K, N]` weight.
const CHANNELS: u32 = 3;

impl BlockWeight {
    /// The scales of the rows, where a row has no other: signed codes under one f32, as the schemes
    /// by channel write them.
    pub(super) fn channels(&self) -> Option<&Stored> {
        let is_signed = matches!(self.codes.element, element::INT8 | element::INT4);
        match &self.scales {
            Grid::Numbers(scales)
                if is_signed
                    && self.offsets.is_none()
                    && scales.element == element::FLOAT
                    && self.codes.dims.last() == Some(&(self.block as u64)) =>
            {
                Some(scales)
            }
            _ => None,
        }
    }

    fn transposed_codes(&self, [rows, columns]: [usize; 2]) -> Vec<u8> {
        transposed(rows, columns, |row, out| {
            let codes = (row * columns..).map(|index| [self.codes.code(index) as u8]);
            out.iter_mut()
                .zip(codes)
                .for_each(|(out, code)| *out = code);
        })
    }

    /// The scales of `channels` times the gain.
    fn channel_scales(&self, channels: &Stored) -> Result<Vec<f32>> {
        let scaled = |scale: f32| {
            Some(scale * self.gain).filter(|scaled| scaled.is_normal() && *scaled > 0.0)
        };
        channels
            .all_numbers()
            .map(scaled)
            .collect::<Option<Vec<f32>>>()
            .ok_or_else(|| {
                let owner = blob_owner(&self.codes.name);
                let what =
                    format!("a row of `{owner}` has a scale that times the gain is not above zero");
                Problem::new("kiln::lower::scale", what)
                    .help("the device holds only scales above zero for whole rows")
            })
    }

    /// Codes under one scale a row.
    fn by_channel(&self, channels: &Stored, shape: [usize; 2]) -> Result<StaticData> {
        let bits = (self.bits() < 8).then_some(self.bits());
        let encoding = Encoding::Axis {
            bits,
            axis: CHANNELS,
            scales: self.channel_scales(channels)?,
        };
        Ok(StaticData {
            bytes: self.transposed_codes(shape),
            encoding,
        })
    }

    /// LPBQ.
    fn expansion(
        &self,
        integers: &Stored,
        channels: &Stored,
        shape: [usize; 2],
    ) -> Result<StaticData> {
        let count = integers.dims.iter().product::<u64>() as usize;
        let block_scales = (0..count).map(|index| integers.code(index) as u8).collect();
        let encoding = Encoding::Expansion {
            axis: CHANNELS,
            scales: self.channel_scales(channels)?,
            block_scales,
        };
        Ok(StaticData {
            bytes: self.transposed_codes(shape),
            encoding,
        })
    }
}

/// A weight for activations of 16-bit codes.
pub(super) struct CodedWeight {
    pub(super) tensor: TensorId,
    /// One a row, for the scales of a bias.
    pub(super) channels: Vec<f32>,
}

impl<'a> Lowering<'a> {
    /// A weight under one scale a row.
    pub(super) fn channel_weight(
        &mut self,
        weight: BlockWeight,
        shape: [usize; 2],
    ) -> Result<TensorId> {
        let note = format!("channel {} bit", weight.bits());
        let name = blob_owner(&weight.codes.name).to_string();
        let data = move || match weight.channels() {
            Some(channels) => weight.by_channel(channels, shape),
            None => Err(Problem::new(
                "kiln::lower::scale",
                "a weight by channel has a scale for each row",
            )),
        };
        self.fixed(&name, DataType::SFixed8, &conv_dims(shape), &note, data)
    }

    /// The weight that is input 1 and following of `node`, for activations of 16-bit codes: of what
    /// `requant` writes, the schemes by channel and LPBQ.
    pub(super) fn coded_weight(
        &mut self,
        node: &'a NodeProto,
        spelling: Spelling,
        gain: f32,
    ) -> Result<CodedWeight> {
        let refuse = |lowering: &Self| {
            let why = "multiplies 16-bit codes, which the device does only with scales by channel \
                       or LPBQ";
            lowering
                .refuse(node, "weight", why)
                .help("dequantize its input, or choose another scheme in `requant`")
        };
        if !matches!(spelling, Spelling::Blocks | Spelling::Lpbq) {
            return Err(refuse(self));
        }
        let weight = self.block_weight(node, spelling, gain)?;
        let shape = weight.codes.matrix().ok_or_else(|| refuse(self))?;
        if let Some(scales) = weight.channels() {
            let channels = weight.channel_scales(scales)?;
            return Ok(CodedWeight {
                tensor: self.channel_weight(weight, shape)?,
                channels,
            });
        }
        let Grid::Products { integers, channels } = weight.scales.clone() else {
            return Err(refuse(self));
        };
        let scales = weight.channel_scales(&channels)?;
        let name = blob_owner(&weight.codes.name).to_string();
        let note = format!("lpbq {}", weight.block);
        let data = move || weight.expansion(&integers, &channels, shape);
        let tensor = self.fixed(&name, DataType::SFixed8, &conv_dims(shape), &note, data)?;
        Ok(CodedWeight {
            tensor,
            channels: scales,
        })
    }

    /// A bias for activations of 16-bit codes in steps of `step`: codes of 32 bits in steps of the
    /// products. Under any other encoding the device drops it without a word.
    pub(super) fn coded_bias(
        &mut self,
        bias: Stored,
        gain: f32,
        step: f32,
        channels: &[f32],
    ) -> Result<TensorId> {
        let name = blob_owner(&bias.name).to_string();
        let scales: Vec<f32> = channels.iter().map(|channel| channel * step).collect();
        let dims = [scales.len() as u64];
        let data = move || {
            let code = |(value, scale): (f32, &f32)| (value * gain / scale).round() as i32;
            let bytes = bias
                .all_numbers()
                .zip(&scales)
                .flat_map(|pair| code(pair).to_le_bytes())
                .collect();
            Ok(StaticData {
                bytes,
                encoding: Encoding::Axis {
                    bits: None,
                    axis: 0,
                    scales: scales.clone(),
                },
            })
        };
        self.fixed(&name, DataType::SFixed32, &dims, "channel 32 bit", data)
    }
}
