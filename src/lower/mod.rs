//! Lowers ONNX to device ops, with one function for each operator. Activations become f16, linear
//! layers become 1x1 Conv2d with weights in the blocks of the GGUF, and the other functions of the
//! dialect become the ops that were tested to compute them.

mod attributes;
mod channel;
mod codes;
mod embedding;
mod encoding;
mod grid;
mod half;
mod linear;
mod standard;
mod stored;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::action::Blob;
use crate::base::{Code, Problem, Result};
use crate::model::onnx::proto::{ModelProto, NodeProto, TensorProto, element};
use crate::model::onnx::{Checked, DOMAIN, Encodings, Function, ValueType, lint};
use crate::qnn::{
    DataType, DeviceGraph, Encoding, Node, Param, StaticData, Tensor, TensorId, TensorKind,
};
pub use encoding::device_use;
use stored::Stored;

/// Opens a file of external data, by its location.
pub type Open<'a> = &'a dyn Fn(&str) -> Result<Blob>;

/// The device graph that computes `model`. The data of weights is computed when the backend reads
/// it.
pub fn lower(model: &ModelProto, open: Open) -> Result<DeviceGraph> {
    check_functions(model)?;
    lint(&[model])?;
    let checked = Checked::new(model)?;
    let encodings = Encodings::of(&checked)?;
    let device = DeviceGraph {
        name: checked.graph.name.clone(),
        ..DeviceGraph::default()
    };
    let mut outputs: HashSet<&str> = HashSet::new();
    for output in &checked.graph.output {
        outputs.insert(&output.name);
    }
    let mut lowering = Lowering {
        checked,
        encodings,
        open,
        device,
        outputs,
        values: HashMap::new(),
        f16s: HashMap::new(),
        on_codes: false,
        names: HashSet::new(),
    };
    lowering.lower_inputs()?;
    for node in &lowering.checked.graph.node {
        lowering.lower_node(node)?;
    }
    Ok(lowering.device)
}

struct Lowering<'a> {
    checked: Checked<'a>,
    encodings: Encodings<'a>,
    open: Open<'a>,
    device: DeviceGraph,
    outputs: HashSet<&'a str>,
    /// The tensors of ONNX values.
    values: HashMap<&'a str, TensorId>,
    /// The f16 values of tensors of codes.
    f16s: HashMap<TensorId, TensorId>,
    /// Whether the current node computes on codes.
    on_codes: bool,
    /// The names of all tensors.
    names: HashSet<String>,
}

/// Checks the bodies of the functions of the dialect: a call is lowered by the name of the
/// function.
fn check_functions(model: &ModelProto) -> Result<()> {
    for found in &model.functions {
        if found.domain != DOMAIN {
            continue;
        }
        match Function::by_name(&found.name) {
            Some(function) if function.definition() == *found => {}
            _ => {
                return Err(Problem::new(
                    Code::LowerFunction,
                    format!(
                        "the body of function `{}` is not the one that kiln writes",
                        found.name
                    ),
                )
                .help("write the graph again with this version of kiln"));
            }
        }
    }
    Ok(())
}

impl<'a> Lowering<'a> {
    fn lower_inputs(&mut self) -> Result<()> {
        let graph = self.checked.graph;
        for input in &graph.input {
            let name = input.name.as_str();
            let tensor = match self.encodings.pairs.get(name) {
                // Only QuantizeLinear reads the input: the device graph has codes as its input.
                Some(&pair) if self.encodings.readers.get(name) == Some(&1) => {
                    let tensor = self.coded(name, name, pair.grid)?;
                    self.values.insert(pair.codes, tensor);
                    tensor
                }
                _ => {
                    let value_type = self.value_type(name)?.clone();
                    self.activation(name, &value_type, TensorKind::Input)?
                }
            };
            self.values.insert(name, tensor);
        }
        Ok(())
    }

    fn lower_node(&mut self, node: &'a NodeProto) -> Result<()> {
        self.on_codes = self.runs_on_codes(node)?;
        match (node.domain.as_str(), node.op_type.as_str()) {
            ("", "Add") => self.plain(node, "ElementWiseAdd"),
            ("", "Sub") => self.plain(node, "ElementWiseSubtract"),
            ("", "Mul") => self.plain(node, "ElementWiseMultiply"),
            ("", "Div") => self.plain(node, "ElementWiseDivide"),
            ("", "Relu") => self.plain(node, "Relu"),
            ("", "Sigmoid") => self.plain(node, "Sigmoid"),
            ("", "Tanh") => self.plain(node, "Tanh"),
            ("", "MatMul") => self.matmul(node),
            ("", "Softmax") => self.softmax(node),
            ("", "Concat") => self.concat(node),
            ("", "Split") => self.split(node),
            ("", "Reshape") => self.reshape(node),
            ("", "Transpose") => self.transpose(node),
            ("", "QuantizeLinear") => self.quantize(node),
            ("", "DequantizeLinear") => self.dequantize(node),
            (DOMAIN, name) => match Function::by_name(name) {
                Some(Function::RmsNorm) => self.rms_norm(node),
                Some(Function::Linear { .. }) => self.linear(node),
                Some(Function::Embedding { .. }) => self.embedding(node),
                None => Err(self.unknown(node)),
            },
            _ => Err(self.unknown(node)),
        }
    }

    fn unknown(&self, node: &NodeProto) -> Problem {
        self.refuse(node, Code::LowerOp, "is not known to the lowering")
            .help(
                "supported are Add, Sub, Mul, Div, Relu, Sigmoid, Tanh, MatMul, Softmax, Concat, \
                 Split, Reshape, Transpose, QuantizeLinear, DequantizeLinear, and the functions of \
                 `docs/artifacts.md`",
            )
    }

    /// A problem of `node`, with the shapes of its inputs.
    fn refuse(&self, node: &NodeProto, code: Code, why: &str) -> Problem {
        let mut inputs = vec![];
        for name in &node.input {
            inputs.push(match self.checked.types.get(name.as_str()) {
                Some(value_type) => format!("{name} {:?}", value_type.dims),
                None => name.clone(),
            });
        }
        let domain = if node.domain.is_empty() {
            String::new()
        } else {
            format!("{}.", node.domain)
        };
        let message = format!(
            "node `{}`, {domain}{}({}), {why}",
            node.name,
            node.op_type,
            inputs.join(", ")
        );
        Problem::new(code, message)
    }

    fn value_type(&self, name: &str) -> Result<&ValueType> {
        match self.checked.types.get(name) {
            Some(value_type) => Ok(value_type),
            None => Err(Problem::new(
                Code::LowerShape,
                format!("`{name}` has no type"),
            )),
        }
    }

    /// The name of input `index` of `node`.
    fn input_name(&self, node: &'a NodeProto, index: usize) -> Result<&'a str> {
        match node.input.get(index) {
            Some(name) => Ok(name),
            None => Err(self.refuse(node, Code::LowerInput, &format!("has no input {index}"))),
        }
    }

    /// The shape of input `index` of `node`.
    fn dims(&self, node: &'a NodeProto, index: usize) -> Result<Vec<u64>> {
        Ok(self.value_type(self.input_name(node, index)?)?.dims.clone())
    }

    /// The tensor of input `index` of `node`: an activation, or a small constant. It is in codes if
    /// the node computes on codes, otherwise in f16.
    fn operand(&mut self, node: &'a NodeProto, index: usize) -> Result<TensorId> {
        if !self.on_codes {
            let tensor = self.raw_operand(node, index)?;
            return self.dequantized(tensor);
        }
        let is_activation = self.values.contains_key(self.input_name(node, index)?);
        if is_activation {
            self.raw_operand(node, index)
        } else {
            self.coded_number(node, index)
        }
    }

    /// The tensors of all inputs of `node`.
    fn operands(&mut self, node: &'a NodeProto) -> Result<Vec<TensorId>> {
        let mut operands = vec![];
        for index in 0..node.input.len() {
            operands.push(self.operand(node, index)?);
        }
        Ok(operands)
    }

    /// The tensor of input `index` of `node`, without conversion.
    fn raw_operand(&mut self, node: &'a NodeProto, index: usize) -> Result<TensorId> {
        let name = self.input_name(node, index)?;
        if let Some(&tensor) = self.values.get(name) {
            return Ok(tensor);
        }
        let constant = self.stored(node, index)?;
        let dims = if constant.dims.is_empty() {
            vec![1]
        } else {
            constant.dims.clone()
        };
        let tensor = self.f16_constant(name, &dims, constant, 1.0)?;
        self.values.insert(name, tensor);
        Ok(tensor)
    }

    /// The constant that is input `index` of `node`.
    fn stored(&self, node: &'a NodeProto, index: usize) -> Result<Stored> {
        let name = self.input_name(node, index)?;
        match self.checked.initializers.get(name) {
            Some(tensor) => self.constant(tensor),
            None => Err(self.refuse(
                node,
                Code::LowerConstant,
                &format!("reads `{name}`, which must be a constant"),
            )),
        }
    }

    /// A constant of the graph.
    fn constant(&self, tensor: &TensorProto) -> Result<Stored> {
        Stored::open(tensor, &self.value_type(&tensor.name)?.dims, self.open)
    }

    /// Adds an op that computes the only output of `node`.
    fn emit(
        &mut self,
        node: &'a NodeProto,
        op: &'static str,
        params: Vec<(&'static str, Param)>,
        inputs: Vec<TensorId>,
    ) -> Result<()> {
        let [output] = node.output.as_slice() else {
            return Err(self.refuse(
                node,
                Code::LowerOutput,
                &format!("has {} outputs, expected 1", node.output.len()),
            ));
        };
        let output = self.result(output)?;
        self.push(op, params, inputs, output);
        Ok(())
    }

    /// The tensor of the ONNX value `name`, which the next op computes.
    fn result(&mut self, name: &'a str) -> Result<TensorId> {
        if self.on_codes {
            return self.coded_result(name);
        }
        let kind = if self.outputs.contains(name) {
            TensorKind::Output
        } else {
            TensorKind::Native
        };
        let value_type = self.value_type(name)?.clone();
        let tensor = self.activation(name, &value_type, kind)?;
        self.values.insert(name, tensor);
        Ok(tensor)
    }

    /// Adds an op with the name of its output.
    fn push(
        &mut self,
        op: &'static str,
        params: Vec<(&'static str, Param)>,
        inputs: Vec<TensorId>,
        output: TensorId,
    ) {
        let name = self.device.tensor(output).name.clone();
        self.device.nodes.push(Node {
            name,
            op,
            params,
            inputs,
            outputs: vec![output],
        });
    }

    fn activation(&mut self, name: &str, value: &ValueType, kind: TensorKind) -> Result<TensorId> {
        let data_type = match value.element {
            element::FLOAT => DataType::Float16,
            element::INT32 => DataType::Int32,
            other => {
                let message =
                    format!("`{name}` has ONNX type {other}; activations are f32, token ids i32");
                return Err(Problem::new(Code::LowerType, message));
            }
        };
        self.tensor(name, kind, data_type, &value.dims, Encoding::None, "")
    }

    /// A tensor between ops that is not an ONNX value.
    fn intermediate(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[u64],
        encoding: Encoding,
    ) -> Result<TensorId> {
        self.tensor(name, TensorKind::Native, data_type, dims, encoding, "")
    }

    /// A constant in f16: `stored` times `gain`.
    fn f16_constant(
        &mut self,
        name: &str,
        dims: &[u64],
        stored: Stored,
        gain: f32,
    ) -> Result<TensorId> {
        self.static_tensor(name, DataType::Float16, dims, "f16", move || {
            Ok(StaticData {
                bytes: stored.f16s(gain)?,
                encoding: Encoding::None,
            })
        })
    }

    /// A constant whose data is computed when the backend reads it.
    fn static_tensor(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[u64],
        note: &str,
        data: impl Fn() -> Result<StaticData> + Send + Sync + 'static,
    ) -> Result<TensorId> {
        let kind = TensorKind::Static(Arc::new(data));
        self.tensor(name, kind, data_type, dims, Encoding::None, note)
    }

    fn tensor(
        &mut self,
        name: &str,
        kind: TensorKind,
        data_type: DataType,
        dims: &[u64],
        encoding: Encoding,
        note: &str,
    ) -> Result<TensorId> {
        let mut device_dims = vec![];
        for &n in dims {
            // The ranges of a slice are i32.
            if n > i32::MAX as u64 {
                return Err(Problem::new(
                    Code::LowerShape,
                    format!("`{name}` {dims:?} is too large for the device"),
                ));
            }
            device_dims.push(n as u32);
        }
        // A table that is both embedding and head becomes two constants, and QNN requires unique
        // names.
        let mut unique = name.to_string();
        let mut number = 1;
        while self.names.contains(&unique) {
            number += 1;
            unique = format!("{name}.{number}");
        }
        self.names.insert(unique.clone());
        Ok(self.device.add(Tensor {
            name: unique,
            kind,
            data_type,
            dims: device_dims,
            encoding,
            note: note.into(),
        }))
    }
}
