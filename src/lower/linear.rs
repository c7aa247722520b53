//! Linear layers: a 1x1 Conv2d over `[1, 1, T, K]`, its weight `[1, 1, K, N]` in the blocks of the
//! GGUF. Where the input is in codes, it is dequantized first: the layer computes in f16.

use super::Lowering;
use super::channel::ChannelWeight;
use super::encoding::device_encoding;
use super::grid::Grid;
use super::half::{Fp16Weights, scale_times_gain};
use super::stored::{Stored, transposed};
use crate::base::{Code, Result};
use crate::model::onnx::WeightCall;
use crate::model::onnx::proto::NodeProto;
use crate::model::weight::{Element, WeightPart, blob_owner};
use crate::qnn::{DataType, DeviceEncoding, Encoding, Param, StaticData, TensorId};

impl<'a> Lowering<'a> {
    pub(super) fn linear(&mut self, node: &'a NodeProto) -> Result<()> {
        let x = self.operand(node, 0)?;
        let dims = self.dims(node, 0)?;
        let call = self.weight_call(node)?;
        let (rows, columns) = (call.rows, call.columns);
        if !matches!(*dims.as_slice(), [1, 1, _, width] if width == columns) {
            return Err(self.refuse(
                node,
                Code::LowerShape,
                &format!("wants an input [1, 1, T, {columns}]"),
            ));
        }
        let mut inputs = vec![x, self.linear_weight(node, &call)?];
        if let Some(bias) = call.bias {
            let bias = self.constant(bias)?;
            let (name, gain) = (blob_owner(&bias.name).to_string(), call.gain);
            let data = move || {
                Ok(StaticData {
                    bytes: bias.f16s(gain)?,
                    encoding: Encoding::None,
                })
            };
            inputs.push(self.fixed(&name, DataType::Float16, &[rows], "f16", data)?);
        }
        let params = vec![
            ("stride", Param::Uint32s(vec![2], vec![1, 1])),
            ("pad_amount", Param::Uint32s(vec![2, 2], vec![0; 4])),
            ("dilation", Param::Uint32s(vec![2], vec![1, 1])),
            ("group", Param::U32(1)),
        ];
        self.emit(node, "Conv2d", params, inputs)
    }

    /// What `node` says of its weight.
    pub(super) fn weight_call(&self, node: &'a NodeProto) -> Result<WeightCall<'a>> {
        WeightCall::of(&self.checked, node)
            .map_err(|why| self.refuse(node, Code::LowerWeight, &why))
    }

    /// The weight of a linear layer that computes in f16.
    fn linear_weight(&mut self, node: &'a NodeProto, call: &WeightCall<'a>) -> Result<TensorId> {
        let shape = [call.rows as usize, call.columns as usize];
        match device_encoding(call.encoding) {
            DeviceEncoding::F16 => {
                let values = self.constant(call.main())?;
                self.plain_weight(values, shape, call.gain)
            }
            DeviceEncoding::Channel { .. } => {
                let weight = ChannelWeight {
                    codes: self.constant(call.main())?,
                    scales: self.part(node, call, WeightPart::Scales)?,
                    gain: call.gain,
                };
                self.channel_weight(weight, shape)
            }
            DeviceEncoding::FloatBlock { .. } => {
                let weight = self.block_weight(node, call)?;
                self.blockwise_weight(weight, shape)
            }
            DeviceEncoding::Lpbq { .. } => Err(self.refuse(
                node,
                Code::LowerWeight,
                "has a weight that multiplies only codes",
            )),
        }
    }

    fn plain_weight(&mut self, values: Stored, shape: [usize; 2], gain: f32) -> Result<TensorId> {
        let name = blob_owner(&values.name).to_string();
        let data = move || {
            let bytes = values.halves_transposed(shape, gain)?;
            Ok(StaticData {
                bytes,
                encoding: Encoding::None,
            })
        };
        self.fixed(&name, DataType::Float16, &conv_dims(shape), "f16", data)
    }

    fn blockwise_weight(&mut self, weight: BlockWeight, shape: [usize; 2]) -> Result<TensorId> {
        let name = blob_owner(&weight.codes.name).to_string();
        let note = format!(
            "float-block {} bit {}{}",
            weight.bits(),
            weight.block,
            if weight.offsets.is_some() {
                " offset"
            } else {
                ""
            }
        );
        let data = move || weight.data(shape);
        self.fixed(&name, DataType::SFixed8, &conv_dims(shape), &note, data)
    }

    /// The weight of `call`, which is stored in codes, as blocks of one scale each.
    pub(super) fn block_weight(
        &self,
        node: &'a NodeProto,
        call: &WeightCall<'a>,
    ) -> Result<BlockWeight> {
        let scales = match call.part(WeightPart::ChannelScales) {
            Some(channels) => Grid::Products {
                integers: self.part(node, call, WeightPart::BlockScales)?,
                channels: self.constant(channels)?,
            },
            None => Grid::Numbers(self.part(node, call, WeightPart::Scales)?),
        };
        let offsets = match call.part(WeightPart::Offsets) {
            Some(offsets) => Some(Grid::Numbers(self.constant(offsets)?)),
            None => None,
        };
        Ok(BlockWeight {
            codes: self.constant(call.main())?,
            scales,
            offsets,
            block: call.encoding.block(call.columns).unwrap_or(call.columns) as usize,
            gain: call.gain,
        })
    }

    /// A part of the weight of `call`.
    fn part(&self, node: &'a NodeProto, call: &WeightCall<'a>, part: WeightPart) -> Result<Stored> {
        let tensor = call.part(part).ok_or_else(|| {
            let what = format!("has a weight without {}", part.name());
            self.refuse(node, Code::LowerWeight, &what)
        })?;
        self.constant(tensor)
    }
}

/// A weight in blocks: `(code * scale + offset) * gain`.
pub(super) struct BlockWeight {
    pub(super) codes: Stored,
    pub(super) scales: Grid,
    pub(super) offsets: Option<Grid>,
    pub(super) block: usize,
    pub(super) gain: f32,
}

/// What the device holds of a block: `(code + shift + offset) * scale`, of which `code + shift` is
/// its code.
#[derive(Debug, PartialEq)]
struct DeviceBlock {
    scale: f32,
    offset: f32,
    /// `None` if all values of the block are one: its codes are written as 0.
    shift: Option<i32>,
}

/// Above so many steps of the code, the whole range of a block is below the rounding of a half.
const MAX_OFFSET_STEPS: f32 = 32768.0;

impl BlockWeight {
    /// Bits of a code.
    pub(super) fn bits(&self) -> u32 {
        self.codes.element.bits() as u32
    }

    fn data(&self, [rows, columns]: [usize; 2]) -> Result<StaticData> {
        let count = rows * (columns / self.block);
        let mut scales = Vec::with_capacity(count);
        let mut offsets = Vec::with_capacity(count);
        let mut shifts = Vec::with_capacity(count);
        let mut f16s = Fp16Weights::default();
        let mut minima = self.offsets.as_ref().map(|offsets| offsets.all_numbers());
        for (index, scale) in self.scales.all_numbers().enumerate() {
            let minimum = minima.as_mut().and_then(Iterator::next);
            let block = self.device_block(index, scale, minimum)?;
            f16s.round(block.scale);
            scales.push(block.scale);
            offsets.push(block.offset);
            shifts.push(block.shift);
        }
        // The device keeps scales as halves, which hold neither every power of two nor every
        // product of a half.
        f16s.finish(&self.scales.blob().name)?;
        let bytes = transposed(rows, columns, |row, out| {
            let blocks = out
                .chunks_exact_mut(self.block)
                .zip(row * columns / self.block..);
            for (out, block) in blocks {
                let Some(shift) = shifts[block] else {
                    out.fill([0]);
                    continue;
                };
                let codes =
                    (block * self.block..).map(|index| [(self.codes.code(index) + shift) as u8]);
                out.iter_mut()
                    .zip(codes)
                    .for_each(|(out, code)| *out = code);
            }
        });
        let block = vec![1, 1, self.block as u32, 1];
        Ok(StaticData {
            bytes,
            encoding: Encoding::FloatBlock {
                bits: self.bits(),
                block,
                scales,
                offsets,
            },
        })
    }

    fn device_block(&self, index: usize, scale: f32, minimum: Option<f32>) -> Result<DeviceBlock> {
        let scaled = |scale| scale_times_gain(scale, self.gain, &self.codes.name);
        // The codes of the device are signed.
        let signed = if self.codes.element == Element::Uint4 {
            -8
        } else {
            0
        };
        let Some(minimum) = minimum else {
            return Ok(DeviceBlock {
                scale: scaled(scale)?,
                offset: -signed as f32,
                shift: Some(signed),
            });
        };
        let steps = minimum / scale;
        if steps.abs() <= MAX_OFFSET_STEPS {
            let shift = self.shift(index, steps);
            return Ok(DeviceBlock {
                scale: scaled(scale)?,
                offset: steps - shift as f32,
                shift: Some(shift),
            });
        }
        // All of the block is its middle: exact where the scale is 0, else nearer than a half can
        // tell.
        let middle = if signed == 0 { 0.0 } else { 7.5 };
        Ok(DeviceBlock {
            scale: scaled(minimum + middle * scale)?,
            offset: 1.0,
            shift: None,
        })
    }

    /// The whole steps of an offset that the codes of a block can take up: what remains of the
    /// offset, the device rounds.
    fn shift(&self, index: usize, steps: f32) -> i32 {
        let codes =
            (index * self.block..(index + 1) * self.block).map(|index| self.codes.code(index));
        let (low, high) = codes.fold((i32::MAX, i32::MIN), |(low, high), code| {
            (low.min(code), high.max(code))
        });
        let span = 1 << (self.bits() - 1);
        (steps.round() as i32).max(-span - low).min(span - 1 - high)
    }
}

pub(super) fn conv_dims([rows, columns]: [usize; 2]) -> [u64; 4] {
    [1, 1, columns as u64, rows as u64]
}
