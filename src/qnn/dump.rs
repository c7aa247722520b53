//! A device graph as text, a line an op: for people and for tests.

use std::fmt::{self, Display, Formatter};

use super::{DataType, DeviceGraph, Node, Param, Tensor, TensorId, TensorKind};

impl Display for DeviceGraph {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph {}", self.name)?;
        for tensor in &self.tensors {
            match tensor.kind {
                TensorKind::Input => writeln!(f, "input {}: {}", tensor.name, Type(tensor))?,
                TensorKind::Output => writeln!(f, "output {}: {}", tensor.name, Type(tensor))?,
                TensorKind::Native | TensorKind::Static(_) => {}
            }
        }
        self.nodes.iter().try_for_each(|node| self.node(f, node))
    }
}

impl DeviceGraph {
    fn node(&self, f: &mut Formatter<'_>, node: &Node) -> fmt::Result {
        let results: Vec<String> = node.outputs.iter().map(|&id| self.typed(id)).collect();
        let mut inside: Vec<String> = node.inputs.iter().map(|&id| self.operand(id)).collect();
        inside.extend(
            node.params
                .iter()
                .map(|(name, param)| format!("{name}={param}")),
        );
        writeln!(
            f,
            "{} = {}({})",
            results.join(", "),
            node.op,
            inside.join(", ")
        )
    }

    fn typed(&self, id: TensorId) -> String {
        let tensor = self.tensor(id);
        format!("{}: {}", tensor.name, Type(tensor))
    }

    /// Constants show what they are, everything else has been shown where it was made.
    fn operand(&self, id: TensorId) -> String {
        let tensor = self.tensor(id);
        match tensor.kind {
            TensorKind::Static(_) => {
                format!("<{}: {} {:?}>", tensor.name, tensor.note, tensor.dims)
            }
            _ => tensor.name.clone(),
        }
    }
}

struct Type<'a>(&'a Tensor);

impl Display for Type<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = match self.0.data_type {
            DataType::Int32 => "i32",
            DataType::Uint8 => "u8",
            DataType::Uint32 => "u32",
            DataType::Float16 => "f16",
            DataType::Float32 => "f32",
            DataType::SFixed8 => "s8",
            DataType::SFixed32 => "s32",
            DataType::UFixed8 => "q8",
            DataType::UFixed16 => "q16",
            DataType::Bool8 => "bool",
        };
        write!(f, "{name} {:?}", self.0.dims)
    }
}

impl Display for Param {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Param::U32(value) => value.fmt(f),
            Param::I32(value) => value.fmt(f),
            Param::F32(value) => value.fmt(f),
            Param::Bool(value) => value.fmt(f),
            Param::Uint32s(_, values) => write!(f, "{values:?}"),
            Param::Int32s(_, values) => write!(f, "{values:?}"),
        }
    }
}
