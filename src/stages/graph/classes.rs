//! Values that are one another's data, moved: they can only have one encoding.

use std::collections::BTreeMap;

use crate::model::onnx::moved;
use crate::model::onnx::proto::{GraphProto, NodeProto, ValueInfoProto, element};

/// The float values of a graph, sorted into classes.
pub(super) struct Classes<'a> {
    of: BTreeMap<&'a str, usize>,
    /// In the order of the graph; with each whether nothing before it in the class gives its data.
    members: Vec<Vec<(&'a str, bool)>>,
}

impl<'a> Classes<'a> {
    /// The classes of `graph`; a value that `begins_anew` does not belong to what it is moved from.
    pub(super) fn new(graph: &'a GraphProto, begins_anew: impl Fn(&str) -> bool) -> Self {
        let mut classes = Classes {
            of: BTreeMap::new(),
            members: vec![],
        };
        let infos = graph.value_info.iter().chain(&graph.output);
        let is_float: BTreeMap<&str, bool> = infos
            .map(|info| (info.name.as_str(), is_f32(info)))
            .collect();
        for input in graph.input.iter().filter(|input| is_f32(input)) {
            classes.add(&input.name, true);
        }
        for node in &graph.node {
            let from: Vec<usize> = moved(node)
                .iter()
                .filter_map(|name| classes.of(name))
                .collect();
            if let [first, others @ ..] = from.as_slice() {
                others.iter().for_each(|other| classes.join(*other, *first));
            }
            for name in node
                .output
                .iter()
                .filter(|name| is_float.get(name.as_str()).copied().unwrap_or(false))
            {
                let apart = from.is_empty() || begins_anew(name);
                let own = classes.add(name, apart);
                if let (Some(first), false) = (from.first(), apart) {
                    classes.join(own, *first);
                }
            }
        }
        classes
    }

    /// Whether `node` only moves data.
    pub(super) fn moves(node: &NodeProto) -> bool {
        !moved(node).is_empty()
    }

    /// How many there are; some have become empty.
    pub(super) fn count(&self) -> usize {
        self.members.len()
    }

    /// The class of a value.
    pub(super) fn of(&self, value: &str) -> Option<usize> {
        self.of.get(value).copied()
    }

    /// Its values, in the order of the graph.
    pub(super) fn names(&self, class: usize) -> impl Iterator<Item = &'a str> + '_ {
        self.members
            .get(class)
            .into_iter()
            .flatten()
            .map(|(name, _)| *name)
    }

    /// Those of its values that are made, not moved.
    pub(super) fn sources(&self, class: usize) -> impl Iterator<Item = &'a str> + '_ {
        self.members
            .get(class)
            .into_iter()
            .flatten()
            .filter(|(_, is_source)| *is_source)
            .map(|(name, _)| *name)
    }

    fn add(&mut self, name: &'a str, is_source: bool) -> usize {
        self.of.insert(name, self.members.len());
        self.members.push(vec![(name, is_source)]);
        self.members.len() - 1
    }

    /// Moves the values of `from` to `to`.
    fn join(&mut self, from: usize, to: usize) {
        if from != to {
            let values = std::mem::take(&mut self.members[from]);
            self.of.extend(values.iter().map(|(name, _)| (*name, to)));
            self.members[to].extend(values);
        }
    }
}

fn is_f32(info: &ValueInfoProto) -> bool {
    let tensor = info
        .r#type
        .as_ref()
        .and_then(|kind| kind.tensor_type.as_ref());
    tensor.is_some_and(|tensor| tensor.elem_type == element::FLOAT)
}
