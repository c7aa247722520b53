//! Linear layers: a 1x1 Conv2d over `[1, 1, T, K]`, its weight `[1, 1, K, N]` in the blocks of the
//! GGUF.

use super::Lowering;
use super::grid::Grid;
use super::half::{Halves, scale_times_gain};
use super::stored::{Stored, transposed};
use crate::base::Result;
use crate::model::facts::blob_owner;
use crate::model::onnx::Spelling;
use crate::model::onnx::proto::{NodeProto, element};
use crate::qnn::{DataType, Encoding, Param, StaticData, TensorId};

impl<'a> Lowering<'a> {
    pub(super) fn linear(
        &mut self,
        node: &'a NodeProto,
        spelling: Spelling,
        bias: bool,
    ) -> Result<()> {
        let x = self.operand(node, 0)?;
        let dims = self.dims(node, 0)?;
        let gain = self.float(node, "gain")?;
        let [rows, columns] = self
            .stored(node, 1)?
            .matrix()
            .ok_or_else(|| self.refuse(node, "shape", "wants a matrix"))?;
        if !matches!(*dims.as_slice(), [1, 1, _, width] if width == columns as u64) {
            return Err(self.refuse(
                node,
                "shape",
                &format!("wants an input [1, 1, T, {columns}]"),
            ));
        }
        let bias = if bias {
            Some(self.bias(node, spelling, rows)?)
        } else {
            None
        };
        let mut inputs = vec![x];
        match (
            self.device.tensor(x).data_type,
            &self.device.tensor(x).encoding,
        ) {
            (DataType::UFixed16, &Encoding::ScaleOffset { scale, .. }) => {
                let weight = self.coded_weight(node, spelling, gain)?;
                inputs.push(weight.tensor);
                if let Some(bias) = bias {
                    inputs.push(self.coded_bias(bias, gain, scale, &weight.channels)?);
                }
            }
            _ => {
                inputs.push(self.half_weight(node, spelling, [rows, columns], gain)?);
                if let Some(bias) = bias {
                    let name = blob_owner(&bias.name).to_string();
                    let data = move || {
                        Ok(StaticData {
                            bytes: bias.halves(gain)?,
                            encoding: Encoding::None,
                        })
                    };
                    inputs.push(self.fixed(
                        &name,
                        DataType::Float16,
                        &[rows as u64],
                        "f16",
                        data,
                    )?);
                }
            }
        }
        let params = vec![
            ("stride", Param::Uint32s(vec![2], vec![1, 1])),
            ("pad_amount", Param::Uint32s(vec![2, 2], vec![0; 4])),
            ("dilation", Param::Uint32s(vec![2], vec![1, 1])),
            ("group", Param::U32(1)),
        ];
        self.emit(node, "Conv2d", params, inputs)
    }

    fn bias(&self, node: &'a NodeProto, spelling: Spelling, rows: usize) -> Result<Stored> {
        let bias = self.stored(node, 1 + spelling.inputs().len())?;
        if bias.dims != [rows as u64] || !bias.is_float() {
            return Err(self.refuse(node, "shape", &format!("wants {rows} numbers as its bias")));
        }
        Ok(bias)
    }

    /// A weight for activations of halves.
    fn half_weight(
        &mut self,
        node: &'a NodeProto,
        spelling: Spelling,
        shape: [usize; 2],
        gain: f32,
    ) -> Result<TensorId> {
        if spelling == Spelling::Values {
            return self.plain_weight(node, shape, gain);
        }
        let weight = self.block_weight(node, spelling, gain)?;
        match weight.channels() {
            Some(_) => self.channel_weight(weight, shape),
            None => self.blockwise_weight(weight, shape),
        }
    }

    fn plain_weight(
        &mut self,
        node: &'a NodeProto,
        shape: [usize; 2],
        gain: f32,
    ) -> Result<TensorId> {
        let values = self.stored(node, 1)?;
        if !values.is_float() {
            return Err(self.refuse(node, "type", "wants floating-point values"));
        }
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

    /// The blockwise weight that is input 1 and following of `node`.
    pub(super) fn block_weight(
        &self,
        node: &'a NodeProto,
        spelling: Spelling,
        gain: f32,
    ) -> Result<BlockWeight> {
        let codes = self.stored(node, 1)?;
        let second = self.stored(node, 2)?;
        let third = if spelling == Spelling::Blocks {
            None
        } else {
            Some(self.stored(node, 3)?)
        };
        let block = self.int(node, "block")?;
        let refuse = |why: &str| self.refuse(node, "block", why);
        let [rows, columns] = codes
            .matrix()
            .ok_or_else(|| refuse("wants a matrix of codes"))?;
        let block = usize::try_from(block)
            .ok()
            .filter(|&block| block > 0 && columns % block == 0);
        let block = block
            .ok_or_else(|| refuse(&format!("does not have whole blocks in {columns} columns")))?;
        let grid = [rows as u64, (columns / block) as u64];
        let fits = |numbers: &Stored| numbers.dims == grid && numbers.is_float();
        if let (Spelling::Lpbq, Some(channels)) = (spelling, &third) {
            let integers = second.element == element::UINT8 && second.dims == grid;
            let channels_fit = channels.dims == [rows as u64] && channels.is_float();
            if codes.element != element::INT4 || !integers || !channels_fit {
                return Err(refuse(&format!(
                    "wants codes of 4 bits, {grid:?} unsigned bytes and {rows} channel scales"
                )));
            }
            let scales = Grid::Products {
                integers: second,
                channels: channels.clone(),
            };
            return Ok(BlockWeight {
                codes,
                scales,
                offsets: None,
                block,
                gain,
            });
        }
        if codes.is_float() || !fits(&second) || !third.as_ref().is_none_or(fits) {
            return Err(refuse(&format!(
                "wants integer codes and {grid:?} numbers as scales and offsets"
            )));
        }
        Ok(BlockWeight {
            codes,
            scales: Grid::Numbers(second),
            offsets: third.map(Grid::Numbers),
            block,
            gain,
        })
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
        if self.codes.element == element::INT8 {
            8
        } else {
            4
        }
    }

    fn data(&self, [rows, columns]: [usize; 2]) -> Result<StaticData> {
        let count = rows * (columns / self.block);
        let mut scales = Vec::with_capacity(count);
        let mut offsets = Vec::with_capacity(count);
        let mut shifts = Vec::with_capacity(count);
        let mut halves = Halves::default();
        let mut minima = self.offsets.as_ref().map(|offsets| offsets.all_numbers());
        for (index, scale) in self.scales.all_numbers().enumerate() {
            let minimum = minima.as_mut().and_then(Iterator::next);
            let block = self.device_block(index, scale, minimum)?;
            halves.round(block.scale);
            scales.push(block.scale);
            offsets.push(block.offset);
            shifts.push(block.shift);
        }
        // The device keeps scales as halves, which hold neither every power of two nor every
        // product of a half.
        halves.finish(&self.scales.blob().name)?;
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
        let signed = if self.codes.element == element::UINT4 {
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
