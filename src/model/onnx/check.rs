//! Reads an untrusted ONNX file and checks that its graph is consistent.

use std::collections::{HashMap, HashSet};

use prost::Message;

use super::proto::{GraphProto, ModelProto, TensorProto, ValueInfoProto};
use crate::base::{Code, Context, Problem, Result};

/// protobuf's own limit of a message.
pub const MAX_MODEL_BYTES: usize = (1 << 31) - 1;
/// Most elements of a tensor: 64 Gi, more than any weight of a model for a phone has.
pub(super) const MAX_TENSOR_ELEMENTS: u64 = 1 << 36;
/// Highest rank. ONNX sets no limit; the device supports ranks up to 5, the dialect up to 4.
pub(super) const MAX_RANK: usize = 8;

/// The model in `bytes`.
pub fn decode(bytes: &[u8]) -> Result<ModelProto> {
    if bytes.len() > MAX_MODEL_BYTES {
        return Err(Problem::new(
            Code::OnnxSize,
            format!("{} bytes are too many for an ONNX file", bytes.len()),
        )
        .help("store weights of more than 2 GB in external files (external data)"));
    }
    let model =
        ModelProto::decode(bytes).context(Code::OnnxMalformed, || "read an ONNX file".into())?;
    match model.graph {
        Some(_) => Ok(model),
        None => Err(Problem::new(
            Code::OnnxMalformed,
            "this ONNX file has no graph",
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

/// A consistent graph: its nodes are in topological order, each value is computed once, and each
/// value has a static shape.
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
        let Some(graph) = &model.graph else {
            return Err(malformed("this ONNX file has no graph".into()));
        };
        let mut types = HashMap::new();
        for values in [&graph.input, &graph.output, &graph.value_info] {
            for value in values {
                types.insert(value.name.as_str(), static_type(value)?);
            }
        }
        let mut initializers = HashMap::new();
        let mut made: HashSet<&str> = HashSet::new();
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
            made.insert(&tensor.name);
        }
        for input in &graph.input {
            made.insert(&input.name);
        }
        for node in &graph.node {
            for name in &node.input {
                if !made.contains(name.as_str()) {
                    return Err(malformed(format!(
                        "node `{}` ({}) reads `{name}`, which nothing before it makes",
                        node.name, node.op_type
                    )));
                }
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
        for output in &graph.output {
            if !made.contains(output.name.as_str()) {
                return Err(malformed(format!(
                    "nothing makes the output `{}`",
                    output.name
                )));
            }
        }
        Ok(Checked {
            graph,
            initializers,
            types,
        })
    }
}

fn static_type(value: &ValueInfoProto) -> Result<ValueType> {
    let kind = value.r#type.as_ref();
    let Some(tensor) = kind.and_then(|kind| kind.tensor_type.as_ref()) else {
        return Err(malformed(format!("`{}` is no tensor", value.name)));
    };
    let Some(shape) = &tensor.shape else {
        return Err(malformed(format!("`{}` has no shape", value.name)));
    };
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
    let mut positive = vec![];
    let mut elements = 1u64;
    for dim in dims {
        match dim {
            Some(n) if n > 0 => {
                positive.push(n as u64);
                elements = elements.saturating_mul(n as u64);
            }
            _ => {
                return Err(
                    malformed(format!("a dimension of `{name}` is not a positive number"))
                        .help("only static shapes are read"),
                );
            }
        }
    }
    if elements > MAX_TENSOR_ELEMENTS {
        return Err(malformed(format!(
            "`{name}` {positive:?} has more than {MAX_TENSOR_ELEMENTS} elements"
        )));
    }
    Ok(positive)
}

fn malformed(message: String) -> Problem {
    Problem::new(Code::OnnxMalformed, message)
}
