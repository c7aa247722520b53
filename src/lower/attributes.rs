//! Reading the attributes of a node.

use super::Lowering;
use crate::base::{Code, Result};
use crate::model::onnx::proto::{AttributeProto, NodeProto};

impl Lowering<'_> {
    /// The integer attribute `name`.
    pub(super) fn int(&self, node: &NodeProto, name: &str) -> Result<i64> {
        let missing = || {
            self.refuse(
                node,
                Code::LowerAttribute,
                &format!("lacks the integer `{name}`"),
            )
        };
        attribute(node, name)
            .and_then(|attribute| attribute.i)
            .ok_or_else(missing)
    }

    /// The number `name`.
    pub(super) fn float(&self, node: &NodeProto, name: &str) -> Result<f32> {
        let missing = || {
            self.refuse(
                node,
                Code::LowerAttribute,
                &format!("lacks the number `{name}`"),
            )
        };
        attribute(node, name)
            .and_then(|attribute| attribute.f)
            .ok_or_else(missing)
    }

    /// The list `name`.
    pub(super) fn ints<'n>(&self, node: &'n NodeProto, name: &str) -> Result<&'n [i64]> {
        let missing = || {
            self.refuse(
                node,
                Code::LowerAttribute,
                &format!("lacks the list `{name}`"),
            )
        };
        attribute(node, name)
            .map(|attribute| attribute.ints.as_slice())
            .ok_or_else(missing)
    }

    /// The attribute `axis` as an index into `rank` dimensions.
    pub(super) fn axis(&self, node: &NodeProto, rank: usize) -> Result<usize> {
        let axis = self.int(node, "axis")?;
        let from_front = if axis < 0 {
            axis.saturating_add(rank as i64)
        } else {
            axis
        };
        usize::try_from(from_front)
            .ok()
            .filter(|&axis| axis < rank)
            .ok_or_else(|| {
                self.refuse(
                    node,
                    Code::LowerAttribute,
                    &format!("has axis {axis} of {rank} dimensions"),
                )
            })
    }
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute
        .iter()
        .find(|attribute| attribute.name == name)
}
