//! Formats a device graph as text, with one line for each op.

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
        for node in &self.nodes {
            self.write_node(f, node)?;
        }
        Ok(())
    }
}

impl DeviceGraph {
    fn write_node(&self, f: &mut Formatter<'_>, node: &Node) -> fmt::Result {
        let mut outputs = vec![];
        for &id in &node.outputs {
            let tensor = self.tensor(id);
            outputs.push(format!("{}: {}", tensor.name, Type(tensor)));
        }
        let mut arguments = vec![];
        for &id in &node.inputs {
            arguments.push(self.operand(id));
        }
        for (name, param) in &node.params {
            arguments.push(format!("{name}={param}"));
        }
        let (outputs, arguments) = (outputs.join(", "), arguments.join(", "));
        writeln!(f, "{outputs} = {}({arguments})", node.op)
    }

    /// The name of a tensor; of a constant also its note and shape.
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
