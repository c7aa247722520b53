//! Groups values that are copies of each other's data into classes: all values of a class have one
//! encoding.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::onnx::moved;
use crate::model::onnx::proto::{GraphProto, NodeProto, ValueInfoProto, element};

/// The float values of a graph by class.
pub(super) struct Classes<'a> {
    class_of: BTreeMap<&'a str, usize>,
    /// In the order of the graph.
    members: Vec<Vec<Member<'a>>>,
}

#[derive(Clone, Copy)]
struct Member<'a> {
    name: &'a str,
    /// Whether it is computed, not moved from another member of the class.
    is_source: bool,
}

impl<'a> Classes<'a> {
    /// The classes of `graph`. A value for which `is_separate` is true does not join the class of
    /// the value that it is moved from.
    pub(super) fn new(graph: &'a GraphProto, is_separate: impl Fn(&str) -> bool) -> Self {
        let mut classes = Classes {
            class_of: BTreeMap::new(),
            members: vec![],
        };
        let mut floats = BTreeSet::new();
        for info in graph.value_info.iter().chain(&graph.output) {
            if is_f32(info) {
                floats.insert(info.name.as_str());
            }
        }
        for input in &graph.input {
            if is_f32(input) {
                classes.add(&input.name, true);
            }
        }
        for node in &graph.node {
            let from = classes.of_all(moved(node));
            if let [first, others @ ..] = from.as_slice() {
                for other in others {
                    classes.join(*other, *first);
                }
            }
            for name in &node.output {
                if !floats.contains(name.as_str()) {
                    continue;
                }
                let is_source = from.is_empty() || is_separate(name);
                let class = classes.add(name, is_source);
                if let (Some(first), false) = (from.first(), is_source) {
                    classes.join(class, *first);
                }
            }
        }
        classes
    }

    /// Whether `node` only moves data.
    pub(super) fn moves(node: &NodeProto) -> bool {
        !moved(node).is_empty()
    }

    /// The number of classes; some are empty.
    pub(super) fn count(&self) -> usize {
        self.members.len()
    }

    /// The class of a value; `None` if it is not a float value.
    pub(super) fn of(&self, value: &str) -> Option<usize> {
        self.class_of.get(value).copied()
    }

    /// The classes of those of `values` that are float values.
    pub(super) fn of_all(&self, values: &[String]) -> Vec<usize> {
        let mut classes = vec![];
        for value in values {
            classes.extend(self.of(value));
        }
        classes
    }

    /// The values of `class`, in the order of the graph.
    pub(super) fn names(&self, class: usize) -> impl Iterator<Item = &'a str> + '_ {
        self.members[class].iter().map(|member| member.name)
    }

    /// The values of `class` that are computed, not moved.
    pub(super) fn sources(&self, class: usize) -> impl Iterator<Item = &'a str> + '_ {
        let members = self.members[class].iter();
        members
            .filter(|member| member.is_source)
            .map(|member| member.name)
    }

    fn add(&mut self, name: &'a str, is_source: bool) -> usize {
        let class = self.members.len();
        self.class_of.insert(name, class);
        self.members.push(vec![Member { name, is_source }]);
        class
    }

    /// Moves the values of `from` to `to`.
    fn join(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        for member in std::mem::take(&mut self.members[from]) {
            self.class_of.insert(member.name, to);
            self.members[to].push(member);
        }
    }
}

fn is_f32(info: &ValueInfoProto) -> bool {
    let Some(kind) = &info.r#type else {
        return false;
    };
    match &kind.tensor_type {
        Some(tensor) => tensor.elem_type == element::FLOAT,
        None => false,
    }
}
