//! Quantized activations: a QuantizeLinear/DequantizeLinear pair is the encoding of one tensor of
//! the device.
//!
//! An operator computes on codes if all that it reads and gives is in codes; otherwise on halves,
//! with Dequantize before it and Quantize after it. A linear layer with native or half weights is
//! of the second kind, whatever is around it.

use super::Lowering;
use crate::base::{Code, Result};
use crate::model::onnx::proto::NodeProto;
use crate::model::onnx::{Grid, moved};
use crate::qnn::{DataType, Encoding, StaticData, TensorId, TensorKind};

/// The operators that the device has for codes.
const ON_CODES: [&str; 6] = ["Add", "Sub", "Mul", "Sigmoid", "MatMul", "Softmax"];

impl<'a> Lowering<'a> {
    /// Whether `node` computes on codes.
    pub(super) fn runs_on_codes(&self, node: &'a NodeProto) -> bool {
        let grid = |name: &String| self.encodings.grids.get(name.as_str());
        if !moved(node).is_empty() {
            return node.output.iter().all(|name| grid(name).is_some());
        }
        let is_number = |name: &String| {
            let constant = self.checked.initializers.get(name.as_str());
            constant.is_some_and(|tensor| tensor.dims.iter().product::<i64>() == 1)
        };
        let is_rounded = |name: &String| {
            let name = name.as_str();
            // Whoever else reads the unrounded value wants it as it is.
            self.encodings.pairs.contains_key(name)
                && self.encodings.readers.get(name) == Some(&1)
                && !self.outputs.contains(name)
        };
        node.domain.is_empty()
            && ON_CODES.contains(&node.op_type.as_str())
            && node
                .input
                .iter()
                .all(|name| grid(name).is_some() || is_number(name))
            && node.output.iter().all(is_rounded)
    }

    /// The tensor of the value `name` that the current node, which computes on codes, is about to
    /// make.
    pub(super) fn coded_result(&mut self, name: &'a str) -> Result<TensorId> {
        let (held, grid) = match (
            self.encodings.grids.get(name),
            self.encodings.pairs.get(name),
        ) {
            (Some(grid), _) => (name, *grid),
            (None, Some(pair)) => {
                let (held, codes, grid) = (pair.held, pair.codes, pair.grid);
                let tensor = self.coded(held, held, grid)?;
                self.values.insert(codes, tensor);
                return Ok(tensor);
            }
            (None, None) => (name, Grid::unit(16)),
        };
        let tensor = self.coded(held, held, grid)?;
        self.values.insert(name, tensor);
        Ok(tensor)
    }

    /// A tensor of codes called `name`, with the shape of the ONNX value `like`.
    pub(super) fn coded(&mut self, name: &str, like: &str, grid: Grid) -> Result<TensorId> {
        let is_input = self
            .checked
            .graph
            .input
            .iter()
            .any(|input| input.name == name);
        let kind = match (is_input, self.outputs.contains(name)) {
            (true, _) => TensorKind::Input,
            (_, true) => TensorKind::Output,
            _ => TensorKind::Native,
        };
        let dims = self.value_type(like)?.dims.clone();
        self.tensor(name, kind, data_type(grid), &dims, encoding(grid), "")
    }

    /// QuantizeLinear: nothing, where the codes have been made directly.
    pub(super) fn quantize(&mut self, node: &'a NodeProto) -> Result<()> {
        let value = self.input_name(node, 0)?;
        let Some(&pair) = self.encodings.pairs.get(value) else {
            return Err(self.refuse(node, Code::LowerEncoding, "has no DequantizeLinear"));
        };
        if self.values.contains_key(pair.codes) {
            return Ok(());
        }
        let source = self.raw_operand(node, 0)?;
        let codes = self.coded(pair.held, pair.held, pair.grid)?;
        let op = if self.device.tensor(source).encoding == Encoding::None {
            "Quantize"
        } else {
            "Convert"
        };
        self.push(op, vec![], vec![source], codes);
        self.values.insert(pair.codes, codes);
        Ok(())
    }

    /// DequantizeLinear: another name of the codes.
    pub(super) fn dequantize(&mut self, node: &'a NodeProto) -> Result<()> {
        let codes = self.raw_operand(node, 0)?;
        if let [held] = node.output.as_slice() {
            self.values.insert(held, codes);
        }
        Ok(())
    }

    /// `tensor` in halves; made once, whoever asks.
    pub(super) fn in_halves(&mut self, tensor: TensorId) -> Result<TensorId> {
        let coded = self.device.tensor(tensor);
        if coded.encoding == Encoding::None || matches!(coded.kind, TensorKind::Static(_)) {
            return Ok(tensor);
        }
        if let Some(&f16s) = self.f16s.get(&tensor) {
            return Ok(f16s);
        }
        let (name, dims) = (
            format!("{}.halves", coded.name),
            coded.dims.iter().map(|&n| n.into()).collect::<Vec<u64>>(),
        );
        let f16s = self.between(&name, DataType::Float16, &dims, Encoding::None)?;
        self.push("Dequantize", vec![], vec![tensor], f16s);
        self.f16s.insert(tensor, f16s);
        Ok(f16s)
    }

    /// The number that is input `index` of `node`, as the last code of a grid of its own.
    pub(super) fn coded_number(&mut self, node: &'a NodeProto, index: usize) -> Result<TensorId> {
        let constant = self.stored(node, index)?;
        if !constant.element.is_float() {
            return Err(self.refuse(node, Code::LowerConstant, "wants a number"));
        }
        let number = constant.all_numbers().next().unwrap_or(0.0);
        let last = u16::MAX;
        let (scale, offset) = if number < 0.0 {
            (-number, -i32::from(last))
        } else {
            (number, 0)
        };
        let encoding = Encoding::ScaleOffset {
            scale: if scale > 0.0 {
                scale / f32::from(last)
            } else {
                1.0
            },
            offset,
        };
        let code = if number > 0.0 { last } else { 0 };
        let name = format!("{}.code", constant.name);
        let data = move || {
            Ok(StaticData {
                bytes: code.to_le_bytes().into(),
                encoding: encoding.clone(),
            })
        };
        self.fixed(&name, DataType::UFixed16, &[1], "q16", data)
    }
}

fn data_type(grid: Grid) -> DataType {
    if grid.bits == 8 {
        DataType::UFixed8
    } else {
        DataType::UFixed16
    }
}

fn encoding(grid: Grid) -> Encoding {
    Encoding::ScaleOffset {
        scale: grid.scale,
        offset: -(grid.zero_point as i32),
    }
}
