//! Lowers the embedding. In f16 without loss: codes, scales and offsets are gathered separately and
//! multiplied. On codes the rows are rounded to the grid of the output, in one table.

use super::Lowering;
use super::codes::Codes;
use super::grid::Grid;
use super::half::{Fp16Weights, scale_times_gain};
use super::stored::Stored;
use crate::base::{Code, Result};
use crate::model::onnx::WeightCall;
use crate::model::onnx::proto::NodeProto;
use crate::model::weight::blob_owner;
use crate::qnn::{DataType, Encoding, Param, StaticData, TensorId};

/// Codes are stored as code + 128 in a byte.
const CODES: Encoding = Encoding::ScaleOffset {
    scale: 1.0,
    offset: -128,
};

impl<'a> Lowering<'a> {
    pub(super) fn embedding(&mut self, node: &'a NodeProto) -> Result<()> {
        let ids = self.operand(node, 0)?;
        let call = self.weight_call(node)?;
        let (shape, gain) = ([call.rows, call.columns], call.gain);
        let &[1, tokens] = self.dims(node, 0)?.as_slice() else {
            return Err(self.refuse(node, Code::LowerShape, "expects ids [1, T]"));
        };
        if self.on_codes {
            let table = self.coded_table(node, &call)?;
            return self.emit(node, "Gather", gather(), vec![table, ids]);
        }
        if call.encoding.is_plain() {
            let table = self.constant(call.main())?;
            let name = format!("{}.table", blob_owner(&table.name));
            let table = self.f16_constant(&name, &shape, table, gain)?;
            return self.emit(node, "Gather", gather(), vec![table, ids]);
        }

        let weight = self.block_weight(node, &call)?;
        let name = |what: &str| format!("{}.{what}", node.name);
        let blocks = shape[1] / weight.block as u64;
        let of_blocks = [1, tokens, blocks, weight.block as u64];
        let codes = self.codes_table(&weight.codes, shape, weight.bits())?;
        let gathered = self.intermediate(
            &name("codes"),
            DataType::UFixed8,
            &[1, tokens, shape[1]],
            CODES,
        )?;
        self.push("Gather", gather(), vec![codes, ids], gathered);
        let plain = self.intermediate(
            &name("plain_codes"),
            DataType::Float16,
            &[1, tokens, shape[1]],
            Encoding::None,
        )?;
        self.push("Dequantize", vec![], vec![gathered], plain);
        let mut value = self.intermediate(
            &name("blocks"),
            DataType::Float16,
            &of_blocks,
            Encoding::None,
        )?;
        self.push("Reshape", vec![], vec![plain], value);

        let scales = self.gathered_grid(node, "scales", &weight.scales, gain, ids, tokens)?;
        let scaled = self.intermediate(
            &name("scaled"),
            DataType::Float16,
            &of_blocks,
            Encoding::None,
        )?;
        self.push("ElementWiseMultiply", vec![], vec![value, scales], scaled);
        value = scaled;
        if let Some(offsets) = &weight.offsets {
            let offsets = self.gathered_grid(node, "offsets", offsets, gain, ids, tokens)?;
            let shifted = self.intermediate(
                &name("shifted"),
                DataType::Float16,
                &of_blocks,
                Encoding::None,
            )?;
            self.push("ElementWiseAdd", vec![], vec![value, offsets], shifted);
            value = shifted;
        }
        self.emit(node, "Reshape", vec![], vec![value])
    }

    /// The values of the weight of `call` in the codes of the output of `node`.
    fn coded_table(&mut self, node: &'a NodeProto, call: &WeightCall<'a>) -> Result<TensorId> {
        let Some(grid) = self.encodings.lookup_grid(node) else {
            return Err(self.refuse(node, Code::LowerEncoding, "has no output in codes"));
        };
        let (shape, gain) = ([call.rows, call.columns], call.gain);
        let values = self.constant(call.main())?;
        let name = format!("{}.table", blob_owner(&values.name));
        let u16s = DataType::UFixed16;
        if call.encoding.is_plain() {
            return self.static_tensor(&name, u16s, &shape, "q16", move || {
                let mut codes = Codes::new(grid);
                for number in values.all_numbers() {
                    codes.push(number * gain);
                }
                Ok(codes.finish())
            });
        }
        let weight = self.block_weight(node, call)?;
        self.static_tensor(&name, u16s, &shape, "q16", move || {
            let mut codes = Codes::new(grid);
            weight.for_each_value(|value| codes.push(value));
            Ok(codes.finish())
        })
    }

    fn codes_table(&mut self, codes: &Stored, shape: [u64; 2], bits: u32) -> Result<TensorId> {
        let name = format!("{}.codes", blob_owner(&codes.name));
        let codes = codes.clone();
        let count = (shape[0] * shape[1]) as usize;
        let note = format!("{bits} bit codes");
        self.static_tensor(&name, DataType::UFixed8, &shape, &note, move || {
            let mut bytes = Vec::with_capacity(count);
            for index in 0..count {
                bytes.push((codes.code(index) + 128) as u8);
            }
            Ok(StaticData {
                bytes,
                encoding: CODES,
            })
        })
    }

    /// The scales or offsets of the blocks of each token, `[1, T, blocks, 1]`.
    fn gathered_grid(
        &mut self,
        node: &NodeProto,
        what: &str,
        grid: &Grid,
        gain: f32,
        ids: TensorId,
        tokens: u64,
    ) -> Result<TensorId> {
        let (dims, grid) = (grid.blob().dims.clone(), grid.clone());
        let blocks = dims.last().copied().unwrap_or_default();
        let name = format!("{}.{what}", blob_owner(&grid.blob().name));
        let table = self.static_tensor(&name, DataType::Float16, &dims, "f16", move || {
            grid_data(&grid, gain)
        })?;
        let of_token = self.intermediate(
            &format!("{}.{what}", node.name),
            DataType::Float16,
            &[1, tokens, blocks],
            Encoding::None,
        )?;
        self.push("Gather", gather(), vec![table, ids], of_token);
        let of_block = self.intermediate(
            &format!("{}.{what}_of_block", node.name),
            DataType::Float16,
            &[1, tokens, blocks, 1],
            Encoding::None,
        )?;
        self.push("Reshape", vec![], vec![of_token], of_block);
        Ok(of_block)
    }
}

/// The numbers of `grid` times `gain`, in f16.
fn grid_data(grid: &Grid, gain: f32) -> Result<StaticData> {
    let Stored { name, dims, .. } = grid.blob();
    let mut f16s = Fp16Weights::default();
    let mut bytes = Vec::with_capacity(dims.iter().product::<u64>() as usize * 2);
    for number in grid.all_numbers() {
        bytes.extend(f16s.round(scale_times_gain(number, gain, name)?));
    }
    f16s.finish(name)?;
    Ok(StaticData {
        bytes,
        encoding: Encoding::None,
    })
}

fn gather() -> Vec<(&'static str, Param)> {
    vec![("axis", Param::I32(0))]
}
