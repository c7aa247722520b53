//! Reads the attributes of a node.

use super::Lowering;
use crate::base::{Code, Result};
use crate::model::onnx::proto::{AttributeProto, NodeProto};

impl Lowering<'_> {
    /// The integer attribute `name`.
    pub(super) fn int(&self, node: &NodeProto, name: &str) -> Result<i64> {
        match attribute(node, name) {
            Some(AttributeProto { i: Some(value), .. }) => Ok(*value),
            _ => Err(self.refuse(
                node,
                Code::LowerAttribute,
                &format!("lacks the integer `{name}`"),
            )),
        }
    }

    /// The float attribute `name`.
    pub(super) fn float(&self, node: &NodeProto, name: &str) -> Result<f32> {
        match attribute(node, name) {
            Some(AttributeProto { f: Some(value), .. }) => Ok(*value),
            _ => Err(self.refuse(
                node,
                Code::LowerAttribute,
                &format!("lacks the number `{name}`"),
            )),
        }
    }

    /// The list of integers `name`.
    pub(super) fn ints<'n>(&self, node: &'n NodeProto, name: &str) -> Result<&'n [i64]> {
        match attribute(node, name) {
            Some(attribute) => Ok(&attribute.ints),
            None => Err(self.refuse(
                node,
                Code::LowerAttribute,
                &format!("lacks the list `{name}`"),
            )),
        }
    }

    /// The attribute `axis` as an index into `rank` dimensions.
    pub(super) fn axis(&self, node: &NodeProto, rank: usize) -> Result<usize> {
        let axis = self.int(node, "axis")?;
        let from_front = if axis < 0 {
            axis.saturating_add(rank as i64)
        } else {
            axis
        };
        match usize::try_from(from_front) {
            Ok(index) if index < rank => Ok(index),
            _ => Err(self.refuse(
                node,
                Code::LowerAttribute,
                &format!("has axis {axis} of {rank} dimensions"),
            )),
        }
    }
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute
        .iter()
        .find(|attribute| attribute.name == name)
}
