//! Linear layers: a 1x1 Conv2d over `[1, 1, T, K]` with a weight `[1, 1, K, N]`. A weight with one
//! scale for each row multiplies 16-bit codes if input and output are in codes. All other layers
//! compute in f16, so an input in codes is dequantized first.

use super::Lowering;
use super::channel::{ChannelWeight, CodedBias, RowScales};
use super::encoding::linear_encoding;
use super::grid::Grid;
use super::half::{Fp16Weights, scale_times_gain};
use super::stored::{Stored, transposed};
use crate::base::{Code, Result};
use crate::model::onnx::WeightCall;
use crate::model::onnx::proto::{NodeProto, TensorProto};
use crate::model::weight::{Element, WeightPart, blob_owner};
use crate::qnn::{DataType, DeviceEncoding, Encoding, Param, StaticData, TensorId};

impl<'a> Lowering<'a> {
    pub(super) fn linear(&mut self, node: &'a NodeProto) -> Result<()> {
        let x = self.operand(node, 0)?;
        let dims = self.dims(node, 0)?;
        let call = self.weight_call(node)?;
        let columns = call.columns;
        if !matches!(*dims.as_slice(), [1, 1, _, width] if width == columns) {
            return Err(self.refuse(
                node,
                Code::LowerShape,
                &format!("expects an input [1, 1, T, {columns}]"),
            ));
        }
        let mut inputs = vec![x, self.linear_weight(node, &call)?];
        if let Some(bias) = call.bias {
            inputs.push(self.linear_bias(node, &call, bias, x)?);
        }
        let params = vec![
            ("stride", Param::Uint32s(vec![2], vec![1, 1])),
            ("pad_amount", Param::Uint32s(vec![2, 2], vec![0; 4])),
            ("dilation", Param::Uint32s(vec![2], vec![1, 1])),
            ("group", Param::U32(1)),
        ];
        self.emit(node, "Conv2d", params, inputs)
    }

    /// The weight that `node` computes with.
    pub(super) fn weight_call(&self, node: &'a NodeProto) -> Result<WeightCall<'a>> {
        WeightCall::of(&self.checked, node)
            .map_err(|why| self.refuse(node, Code::LowerWeight, &why))
    }

    fn linear_weight(&mut self, node: &'a NodeProto, call: &WeightCall<'a>) -> Result<TensorId> {
        let shape = [call.rows as usize, call.columns as usize];
        match linear_encoding(call.encoding, self.on_codes) {
            DeviceEncoding::F16 => {
                let values = self.constant(call.main())?;
                self.plain_weight(values, shape, call.gain)
            }
            DeviceEncoding::Channel { .. } => {
                let weight = ChannelWeight {
                    codes: self.constant(call.main())?,
                    integers: None,
                    scales: self.row_scales(node, call)?,
                };
                self.channel_weight(weight, shape)
            }
            DeviceEncoding::Lpbq { .. } => {
                let weight = ChannelWeight {
                    codes: self.constant(call.main())?,
                    integers: Some(self.part(node, call, WeightPart::BlockScales)?),
                    scales: self.row_scales(node, call)?,
                };
                self.channel_weight(weight, shape)
            }
            DeviceEncoding::FloatBlock { .. } => {
                let weight = self.block_weight(node, call)?;
                self.blockwise_weight(weight, shape)
            }
        }
    }

    /// The bias of a linear layer with the input `x`.
    fn linear_bias(
        &mut self,
        node: &'a NodeProto,
        call: &WeightCall<'a>,
        bias: &TensorProto,
        x: TensorId,
    ) -> Result<TensorId> {
        let bias = self.constant(bias)?;
        if let Encoding::ScaleOffset { scale, .. } = self.device.tensor(x).encoding {
            let coded = CodedBias {
                bias,
                scales: self.row_scales(node, call)?,
                input_scale: scale,
            };
            return self.coded_bias(coded, call.rows);
        }
        let name = blob_owner(&bias.name).to_string();
        self.f16_constant(&name, &[call.rows], bias, call.gain)
    }

    /// The scales of the rows of a weight that has one for each.
    fn row_scales(&self, node: &'a NodeProto, call: &WeightCall<'a>) -> Result<RowScales> {
        let part = match call.part(WeightPart::ChannelScales) {
            Some(_) => WeightPart::ChannelScales,
            None => WeightPart::Scales,
        };
        Ok(RowScales {
            scales: self.part(node, call, part)?,
            gain: call.gain,
        })
    }

    fn plain_weight(&mut self, values: Stored, shape: [usize; 2], gain: f32) -> Result<TensorId> {
        let name = values.name.clone();
        self.conv_weight(&name, DataType::Float16, shape, "f16", move || {
            Ok(StaticData {
                bytes: values.f16s_transposed(shape, gain)?,
                encoding: Encoding::None,
            })
        })
    }

    fn blockwise_weight(&mut self, weight: BlockWeight, shape: [usize; 2]) -> Result<TensorId> {
        let name = weight.codes.name.clone();
        let mut note = format!("float-block {} bit {}", weight.bits(), weight.block);
        if weight.offsets.is_some() {
            note.push_str(" offset");
        }
        self.conv_weight(&name, DataType::SFixed8, shape, &note, move || {
            weight.data(shape)
        })
    }

    /// The weight `[rows, columns]` of a 1x1 Conv2d, with the name of the weight that `blob` is a
    /// part of.
    pub(super) fn conv_weight(
        &mut self,
        blob: &str,
        data_type: DataType,
        [rows, columns]: [usize; 2],
        note: &str,
        data: impl Fn() -> Result<StaticData> + Send + Sync + 'static,
    ) -> Result<TensorId> {
        let dims = [1, 1, columns as u64, rows as u64];
        self.static_tensor(blob_owner(blob), data_type, &dims, note, data)
    }

    /// The weight of `call`, which is stored in codes, as blocks with one scale each.
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
        match call.part(part) {
            Some(tensor) => self.constant(tensor),
            None => {
                let what = format!("has a weight without {}", part.name());
                Err(self.refuse(node, Code::LowerWeight, &what))
            }
        }
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

/// A block on the device: `(code + shift + offset) * scale`, where `code + shift` is the code on
/// the device.
#[derive(Debug, PartialEq)]
struct DeviceBlock {
    scale: f32,
    offset: f32,
    /// `None` if all values of the block are equal: its codes are written as 0.
    shift: Option<i32>,
}

/// Largest offset in steps of the code. Above it, the range of a block is smaller than the rounding
/// error of f16.
const MAX_OFFSET_STEPS: f32 = 32768.0;

impl BlockWeight {
    /// Bits of a code.
    pub(super) fn bits(&self) -> u32 {
        self.codes.element.bits() as u32
    }

    /// Calls `each` with all values, row by row.
    pub(super) fn for_each_value(&self, mut each: impl FnMut(f32)) {
        let mut offsets = self.offsets.as_ref().map(|offsets| offsets.all_numbers());
        for (block, scale) in self.scales.all_numbers().enumerate() {
            let offset = match &mut offsets {
                Some(offsets) => offsets.next().unwrap_or(0.0),
                None => 0.0,
            };
            for index in block * self.block..(block + 1) * self.block {
                each((self.codes.code(index) as f32 * scale + offset) * self.gain);
            }
        }
    }

    fn data(&self, [rows, columns]: [usize; 2]) -> Result<StaticData> {
        let count = rows * (columns / self.block);
        let mut scales = Vec::with_capacity(count);
        let mut offsets = Vec::with_capacity(count);
        let mut shifts = Vec::with_capacity(count);
        let mut f16s = Fp16Weights::default();
        let mut minima = self.offsets.as_ref().map(|offsets| offsets.all_numbers());
        for (index, scale) in self.scales.all_numbers().enumerate() {
            let minimum = match &mut minima {
                Some(minima) => minima.next(),
                None => None,
            };
            let block = self.device_block(index, scale, minimum)?;
            f16s.round(block.scale);
            scales.push(block.scale);
            offsets.push(block.offset);
            shifts.push(block.shift);
        }
        // The device stores scales in f16, which does not have every power of two and not every
        // product of an f16 number.
        f16s.finish(&self.scales.blob().name)?;
        let bytes = transposed(rows, columns, |row, out| {
            let first_block = row * columns / self.block;
            for (index, out) in out.chunks_exact_mut(self.block).enumerate() {
                let block = first_block + index;
                let Some(shift) = shifts[block] else {
                    out.fill([0]);
                    continue;
                };
                let first_code = block * self.block;
                for (column, out) in out.iter_mut().enumerate() {
                    *out = [(self.codes.code(first_code + column) + shift) as u8];
                }
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
        // The codes on the device are signed.
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
        // All values become the middle of the block. This is exact if the scale is 0, otherwise the
        // error is below the rounding error of f16.
        let (low, high) = self.code_range(index);
        let middle = (low + high) as f32 / 2.0;
        Ok(DeviceBlock {
            scale: scaled(minimum + middle * scale)?,
            offset: 1.0,
            shift: None,
        })
    }

    /// The part of an offset, in whole steps, that can be added to the codes of a block without
    /// overflow. The device rounds the rest of the offset.
    fn shift(&self, index: usize, steps: f32) -> i32 {
        let (low, high) = self.code_range(index);
        let span = 1 << (self.bits() - 1);
        (steps.round() as i32).max(-span - low).min(span - 1 - high)
    }

    /// The smallest and the largest code of a block.
    fn code_range(&self, index: usize) -> (i32, i32) {
        let (mut low, mut high) = (i32::MAX, i32::MIN);
        for index in index * self.block..(index + 1) * self.block {
            let code = self.codes.code(index);
            low = low.min(code);
            high = high.max(code);
        }
        (low, high)
    }
}
