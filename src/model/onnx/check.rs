//! Reads a file from anywhere, and finds out whether its graph holds together.

use std::collections::{HashMap, HashSet};

use prost::Message;

use super::proto::{GraphProto, ModelProto, TensorProto, ValueInfoProto};
use crate::base::{Code, Context, Problem, Result};

/// protobuf's own limit of a message.
pub const MAX_MODEL_BYTES: usize = (1 << 31) - 1;
/// Bytes of one tensor that a graph may name: 64 GB, more than any weight of a model for a phone.
pub const MAX_TENSOR_ELEMENTS: u64 = 1 << 36;
/// ONNX sets no limit; the device knows ranks up to 5, the dialect up to 4.
pub const MAX_RANK: usize = 8;

/// The model in `bytes`.
pub fn decode(bytes: &[u8]) -> Result<ModelProto> {
    if bytes.len() > MAX_MODEL_BYTES {
        return Err(Problem::new(
            Code::OnnxSize,
            format!("{} bytes are too many for an ONNX file", bytes.len()),
        )
        .help("weights of more than 2 GB lie in files of their own (external data)"));
    }
    let model =
        ModelProto::decode(bytes).context(Code::OnnxMalformed, || "read an ONNX file".into())?;
    match model.graph {
        Some(_) => Ok(model),
        None => Err(Problem::new(
            Code::OnnxMalformed,
            "this ONNX file holds no graph",
        )),
    }
}

/// Element type and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueType {
    /// One of [`element`](super::proto::element).
    pub element: i32,
    /// Every dimension is at least 1.
    pub dims: Vec<u64>,
}

/// A graph that holds together: nodes in topological order, each value made once, every value with
/// a static shape.
pub struct Checked<'a> {
    /// The graph.
    pub graph: &'a GraphProto,
    /// Constants by name.
    pub initializers: HashMap<&'a str, &'a TensorProto>,
    /// Types of all inputs, outputs, constants and values between nodes.
    pub types: HashMap<&'a str, ValueType>,
}

impl<'a> Checked<'a> {
    /// Checks the graph of `model`.
    pub fn new(model: &'a ModelProto) -> Result<Self> {
        let graph = model
            .graph
            .as_ref()
            .ok_or_else(|| malformed("this ONNX file holds no graph".into()))?;
        let mut types = HashMap::new();
        for value in graph
            .input
            .iter()
            .chain(&graph.output)
            .chain(&graph.value_info)
        {
            types.insert(value.name.as_str(), static_type(value)?);
        }
        let mut initializers = HashMap::new();
        for tensor in &graph.initializer {
            let dims = checked_dims(&tensor.name, tensor.dims.iter().map(|&n| Some(n)))?;
            types.insert(
                tensor.name.as_str(),
                ValueType {
                    element: tensor.data_type,
                    dims,
                },
            );
            if initializers.insert(tensor.name.as_str(), tensor).is_some() {
                return Err(malformed(format!(
                    "two constants are called `{}`",
                    tensor.name
                )));
            }
        }
        let inputs = graph.input.iter().map(|input| input.name.as_str());
        let mut made: HashSet<&str> = initializers.keys().copied().chain(inputs).collect();
        for node in &graph.node {
            if let Some(name) = node.input.iter().find(|name| !made.contains(name.as_str())) {
                return Err(malformed(format!(
                    "node `{}` ({}) reads `{name}`, which nothing before it makes",
                    node.name, node.op_type
                )));
            }
            for name in &node.output {
                if !made.insert(name) {
                    return Err(malformed(format!(
                        "`{name}` is made twice, again by node `{}`",
                        node.name
                    )));
                }
                if !types.contains_key(name.as_str()) {
                    return Err(malformed(format!(
                        "`{name}`, made by node `{}`, has no shape",
                        node.name
                    ))
                    .help("run onnx.shape_inference.infer_shapes on it"));
                }
            }
        }
        match graph
            .output
            .iter()
            .find(|output| !made.contains(output.name.as_str()))
        {
            Some(output) => Err(malformed(format!(
                "nothing makes the output `{}`",
                output.name
            ))),
            None => Ok(Checked {
                graph,
                initializers,
                types,
            }),
        }
    }
}

fn static_type(value: &ValueInfoProto) -> Result<ValueType> {
    let tensor = value
        .r#type
        .as_ref()
        .and_then(|kind| kind.tensor_type.as_ref());
    let tensor = tensor.ok_or_else(|| malformed(format!("`{}` is no tensor", value.name)))?;
    let shape = tensor
        .shape
        .as_ref()
        .ok_or_else(|| malformed(format!("`{}` has no shape", value.name)))?;
    Ok(ValueType {
        element: tensor.elem_type,
        dims: checked_dims(&value.name, shape.dim.iter().map(|dim| dim.dim_value))?,
    })
}

fn checked_dims(name: &str, dims: impl ExactSizeIterator<Item = Option<i64>>) -> Result<Vec<u64>> {
    if dims.len() > MAX_RANK {
        return Err(malformed(format!(
            "`{name}` has {} dimensions; at most {MAX_RANK} are read",
            dims.len()
        )));
    }
    let dims: Option<Vec<u64>> = dims
        .map(|n| u64::try_from(n?).ok().filter(|&n| n > 0))
        .collect();
    let dims = dims.ok_or_else(|| {
        malformed(format!("a dimension of `{name}` is not a positive number"))
            .help("only static shapes are read")
    })?;
    let elements = dims
        .iter()
        .try_fold(1u64, |product, &n| product.checked_mul(n));
    match elements {
        Some(n) if n <= MAX_TENSOR_ELEMENTS => Ok(dims),
        _ => Err(malformed(format!(
            "`{name}` {dims:?} has more than {MAX_TENSOR_ELEMENTS} elements"
        ))),
    }
}

fn malformed(message: String) -> Problem {
    Problem::new(Code::OnnxMalformed, message)
}
