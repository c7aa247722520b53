//! ONNX to device ops, one function an operator. Activations become f16, every linear layer a 1x1
//! Conv2d with the weights in the blocks of the GGUF, every function of the dialect the op that was
//! proven to compute it.

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

/// Gives the bytes of a file of external data, by its location.
pub type Open<'a> = &'a dyn Fn(&str) -> Result<Blob>;

/// The device graph that computes `model`. The data of weights is made when the backend asks for
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
    let outputs = checked
        .graph
        .output
        .iter()
        .map(|output| output.name.as_str())
        .collect();
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
    lowering.inputs()?;
    for node in lowering.nodes() {
        lowering.node(node)?;
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
    /// What tensors of codes are in halves.
    f16s: HashMap<TensorId, TensorId>,
    /// Whether the current node computes on codes.
    on_codes: bool,
    /// The names that are taken.
    names: HashSet<String>,
}

/// A function is lowered by its name, so that its body must be the one that the name stands for.
fn check_functions(model: &ModelProto) -> Result<()> {
    for theirs in model
        .functions
        .iter()
        .filter(|function| function.domain == DOMAIN)
    {
        if Function::called(&theirs.name).is_none_or(|ours| ours.definition() != *theirs) {
            return Err(Problem::new(
                Code::LowerFunction,
                format!(
                    "the body of function `{}` is not the one that kiln writes",
                    theirs.name
                ),
            )
            .help("write the graph again with this version of kiln"));
        }
    }
    Ok(())
}

impl<'a> Lowering<'a> {
    fn nodes(&self) -> &'a [NodeProto] {
        &self.checked.graph.node
    }

    fn inputs(&mut self) -> Result<()> {
        let graph = self.checked.graph;
        for input in &graph.input {
            let name = input.name.as_str();
            let rounded = self
                .encodings
                .pairs
                .get(name)
                .filter(|_| self.encodings.readers.get(name) == Some(&1));
            let tensor = match rounded.copied() {
                // Whoever gives it, gives codes.
                Some(pair) => {
                    let tensor = self.coded(name, name, pair.grid)?;
                    self.values.insert(pair.codes, tensor);
                    tensor
                }
                None => {
                    let kind = self.value_type(name)?.clone();
                    self.activation(name, &kind, TensorKind::Input)?
                }
            };
            self.values.insert(name, tensor);
        }
        Ok(())
    }

    fn node(&mut self, node: &'a NodeProto) -> Result<()> {
        self.on_codes = self.runs_on_codes(node);
        match (node.domain.as_str(), node.op_type.as_str()) {
            ("", "Add") => self.plain(node, "ElementWiseAdd"),
            ("", "Sub") => self.plain(node, "ElementWiseSubtract"),
            ("", "Mul") => self.plain(node, "ElementWiseMultiply"),
            ("", "Div") => self.plain(node, "ElementWiseDivide"),
            ("", "Relu") => self.plain(node, "Relu"),
            ("", "Sigmoid") => self.plain(node, "Sigmoid"),
            ("", "MatMul") => self.matmul(node),
            ("", "Softmax") => self.softmax(node),
            ("", "Concat") => self.concat(node),
            ("", "Split") => self.split(node),
            ("", "Reshape") => self.reshape(node),
            ("", "Transpose") => self.transpose(node),
            ("", "QuantizeLinear") => self.quantize(node),
            ("", "DequantizeLinear") => self.dequantize(node),
            (DOMAIN, name) => match Function::called(name) {
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
                "known are Add, Sub, Mul, Div, Relu, Sigmoid, MatMul, Softmax, Concat, Split, \
                 Reshape, Transpose, QuantizeLinear, DequantizeLinear, and the functions of \
                 `docs/artifacts.md`",
            )
    }

    /// A problem of `node`, with the shapes of what it reads.
    fn refuse(&self, node: &NodeProto, code: Code, why: &str) -> Problem {
        let shape = |name: &String| match self.checked.types.get(name.as_str()) {
            Some(kind) => format!("{name} {:?}", kind.dims),
            None => name.clone(),
        };
        let inputs: Vec<String> = node.input.iter().map(shape).collect();
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
        let missing = || Problem::new(Code::LowerShape, format!("`{name}` has no type"));
        self.checked.types.get(name).ok_or_else(missing)
    }

    /// The name of input `index` of `node`.
    fn input_name(&self, node: &'a NodeProto, index: usize) -> Result<&'a str> {
        let missing = || self.refuse(node, Code::LowerInput, &format!("has no input {index}"));
        node.input
            .get(index)
            .map(String::as_str)
            .ok_or_else(missing)
    }

    /// The shape of input `index` of `node`.
    fn dims(&self, node: &'a NodeProto, index: usize) -> Result<Vec<u64>> {
        Ok(self.value_type(self.input_name(node, index)?)?.dims.clone())
    }

    /// The tensor of input `index` of `node`, in codes or halves as the node wants them: an
    /// activation, or a small constant written into the graph.
    fn operand(&mut self, node: &'a NodeProto, index: usize) -> Result<TensorId> {
        if !self.on_codes {
            let tensor = self.raw_operand(node, index)?;
            return self.in_halves(tensor);
        }
        let is_activation = self.values.contains_key(self.input_name(node, index)?);
        if is_activation {
            self.raw_operand(node, index)
        } else {
            self.coded_number(node, index)
        }
    }

    /// The tensor of input `index` of `node` as it is.
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
        let data = move || {
            Ok(StaticData {
                bytes: constant.f16s(1.0)?,
                encoding: Encoding::None,
            })
        };
        let tensor = self.fixed(name, DataType::Float16, &dims, "f16", data)?;
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

    /// Adds an op whose results are the outputs of `node`; it is named after the first.
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

    /// The tensor of the ONNX value `name`, which the next op makes.
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

    /// Adds an op, named after its result.
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

    /// A tensor between ops that has no ONNX value of its own.
    fn between(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[u64],
        encoding: Encoding,
    ) -> Result<TensorId> {
        self.tensor(name, TensorKind::Native, data_type, dims, encoding, "")
    }

    /// A constant whose data is made when the backend asks for it.
    fn fixed(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[u64],
        note: &str,
        data: impl Fn() -> Result<StaticData> + Send + Sync + 'static,
    ) -> Result<TensorId> {
        self.tensor(
            name,
            TensorKind::Static(Arc::new(data)),
            data_type,
            dims,
            Encoding::None,
            note,
        )
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
        // Slices are given in i32.
        let narrow = |&n: &u64| u32::try_from(n).ok().filter(|&n| n <= i32::MAX as u32);
        let dims = dims
            .iter()
            .map(narrow)
            .collect::<Option<Vec<u32>>>()
            .ok_or_else(|| {
                Problem::new(
                    Code::LowerShape,
                    format!("`{name}` {dims:?} is too large for the device"),
                )
            })?;
        // A table that is both embedding and head gives two constants; the API wants other names.
        let unique = (1..).map(|n| {
            if n == 1 {
                name.to_string()
            } else {
                format!("{name}.{n}")
            }
        });
        let name = unique
            .into_iter()
            .find(|name| !self.names.contains(name))
            .unwrap_or_default();
        self.names.insert(name.clone());
        Ok(self.device.add(Tensor {
            name,
            kind,
            data_type,
            dims,
            encoding,
            note: note.into(),
        }))
    }
}
