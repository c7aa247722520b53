//! Lowers quantized activations: a QuantizeLinear/DequantizeLinear pair becomes the encoding of one
//! tensor of the device.
//!
//! An operator computes on codes if all its inputs and outputs are in codes. Otherwise it computes
//! in f16, with Dequantize before it and Quantize after it. A linear layer needs a weight that can
//! multiply codes, too. The constants of an operator on codes are codes with grids of their own.

use super::Lowering;
use super::stored::Stored;
use crate::base::{Code, Result};
use crate::model::onnx::proto::NodeProto;
use crate::model::onnx::{Function, Grid, activations, moved};
use crate::model::weight::Activations;
use crate::qnn::{DataType, Encoding, StaticData, TensorId, TensorKind};

/// The operators that the device has for codes.
const ON_CODES: [&str; 8] = [
    "Add", "Sub", "Mul", "Relu", "Sigmoid", "Tanh", "MatMul", "Softmax",
];

impl<'a> Lowering<'a> {
    /// Whether `node` computes on codes.
    pub(super) fn runs_on_codes(&self, node: &'a NodeProto) -> Result<bool> {
        let encodings = &self.encodings;
        match Function::of(node) {
            Some(Function::Linear { .. }) => {
                let weight = self.weight_call(node)?.encoding;
                let found = activations(encodings, node, weight)
                    .map_err(|why| self.refuse(node, Code::LowerEncoding, &why))?;
                return Ok(found == Activations::U16);
            }
            Some(Function::Embedding { .. }) => return Ok(encodings.lookup_grid(node).is_some()),
            Some(Function::RmsNorm) => return Ok(encodings.norm_on_codes(node)),
            None => {}
        }
        if !moved(node).is_empty() {
            return Ok(node.output.iter().all(|name| encodings.is_on_grid(name)));
        }
        if !node.domain.is_empty() || !ON_CODES.contains(&node.op_type.as_str()) {
            return Ok(false);
        }
        for name in &node.input {
            if !encodings.is_on_grid(name) && !self.is_number(name) {
                return Ok(false);
            }
        }
        let mut outputs = node.output.iter();
        Ok(outputs.all(|name| encodings.only_rounded(name).is_some()))
    }

    /// Whether `name` is a constant of one element.
    fn is_number(&self, name: &str) -> bool {
        match self.checked.initializers.get(name) {
            Some(tensor) => tensor.dims.iter().product::<i64>() == 1,
            None => false,
        }
    }

    /// The tensor of the value `name`, which the current node computes in codes.
    pub(super) fn coded_result(&mut self, name: &'a str) -> Result<TensorId> {
        let grid = self.encodings.grids.get(name).copied();
        if grid.is_none()
            && let Some(&pair) = self.encodings.pairs.get(name)
        {
            let tensor = self.coded(pair.dequantized, pair.dequantized, pair.grid)?;
            self.values.insert(pair.codes, tensor);
            return Ok(tensor);
        }
        let tensor = self.coded(name, name, grid.unwrap_or(Grid::unit(16)))?;
        self.values.insert(name, tensor);
        Ok(tensor)
    }

    /// A tensor of codes called `name`, with the shape of the ONNX value `like`.
    pub(super) fn coded(&mut self, name: &str, like: &str, grid: Grid) -> Result<TensorId> {
        let inputs = &self.checked.graph.input;
        let kind = if inputs.iter().any(|input| input.name == name) {
            TensorKind::Input
        } else if self.outputs.contains(name) {
            TensorKind::Output
        } else {
            TensorKind::Native
        };
        let dims = self.value_type(like)?.dims.clone();
        self.tensor(name, kind, data_type(grid), &dims, encoding(grid), "")
    }

    /// QuantizeLinear: no op if the node before it computes on codes.
    pub(super) fn quantize(&mut self, node: &'a NodeProto) -> Result<()> {
        let value = self.input_name(node, 0)?;
        let Some(&pair) = self.encodings.pairs.get(value) else {
            return Err(self.refuse(node, Code::LowerEncoding, "has no DequantizeLinear"));
        };
        if self.values.contains_key(pair.codes) {
            return Ok(());
        }
        let source = self.raw_operand(node, 0)?;
        let codes = self.coded(pair.dequantized, pair.dequantized, pair.grid)?;
        let op = if self.device.tensor(source).encoding == Encoding::None {
            "Quantize"
        } else {
            "Convert"
        };
        self.push(op, vec![], vec![source], codes);
        self.values.insert(pair.codes, codes);
        Ok(())
    }

    /// DequantizeLinear: no op. Its output is another name of the codes.
    pub(super) fn dequantize(&mut self, node: &'a NodeProto) -> Result<()> {
        let codes = self.raw_operand(node, 0)?;
        if let [dequantized] = node.output.as_slice() {
            self.values.insert(dequantized, codes);
        }
        Ok(())
    }

    /// `tensor` in f16. All readers share one Dequantize.
    pub(super) fn dequantized(&mut self, tensor: TensorId) -> Result<TensorId> {
        let coded = self.device.tensor(tensor);
        if coded.encoding == Encoding::None || matches!(coded.kind, TensorKind::Static(_)) {
            return Ok(tensor);
        }
        if let Some(&f16s) = self.f16s.get(&tensor) {
            return Ok(f16s);
        }
        let name = format!("{}.halves", coded.name);
        let dims: Vec<u64> = coded.dims.iter().map(|&n| n.into()).collect();
        let f16s = self.intermediate(&name, DataType::Float16, &dims, Encoding::None)?;
        self.push("Dequantize", vec![], vec![tensor], f16s);
        self.f16s.insert(tensor, f16s);
        Ok(f16s)
    }

    /// A constant of floating-point numbers in 16-bit codes, whose grid covers just them.
    pub(super) fn coded_constant(
        &mut self,
        name: &str,
        dims: &[u64],
        constant: Stored,
    ) -> Result<TensorId> {
        let (mut low, mut high) = (0.0f32, 0.0f32);
        for number in constant.all_numbers() {
            low = low.min(number);
            high = high.max(number);
        }
        let grid = Grid::over(16, low, high).unwrap_or(Grid::unit(16));
        self.static_tensor(name, DataType::UFixed16, dims, "q16", move || {
            let mut codes = Codes::new(grid);
            for number in constant.all_numbers() {
                codes.push(number);
            }
            Ok(codes.finish())
        })
    }

    /// The number that is input `index` of `node`, in a tensor with its own encoding: its largest
    /// code is the number.
    pub(super) fn coded_number(&mut self, node: &'a NodeProto, index: usize) -> Result<TensorId> {
        let constant = self.stored(node, index)?;
        if !constant.element.is_float() {
            return Err(self.refuse(node, Code::LowerConstant, "expects a number"));
        }
        let number = constant.all_numbers().next().unwrap_or(0.0);
        let largest_code = u16::MAX;
        let (scale, offset) = if number < 0.0 {
            (-number, -i32::from(largest_code))
        } else {
            (number, 0)
        };
        let encoding = Encoding::ScaleOffset {
            scale: if scale > 0.0 {
                scale / f32::from(largest_code)
            } else {
                1.0
            },
            offset,
        };
        let code = if number > 0.0 { largest_code } else { 0 };
        let name = format!("{}.code", constant.name);
        self.static_tensor(&name, DataType::UFixed16, &[1], "q16", move || {
            Ok(StaticData {
                bytes: code.to_le_bytes().into(),
                encoding: encoding.clone(),
            })
        })
    }
}

/// Rounds the numbers of a constant to a grid of 16 bits.
pub(super) struct Codes {
    grid: Grid,
    bytes: Vec<u8>,
}

impl Codes {
    pub(super) fn new(grid: Grid) -> Self {
        let bytes = vec![];
        Codes { grid, bytes }
    }

    pub(super) fn push(&mut self, number: f32) {
        let code = self.grid.code(number) as u16;
        self.bytes.extend(code.to_le_bytes());
    }

    pub(super) fn finish(self) -> StaticData {
        StaticData {
            bytes: self.bytes,
            encoding: encoding(self.grid),
        }
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
