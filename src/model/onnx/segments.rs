//! Splits a graph into models that run one after the other: one for each layer and one for each
//! slice of a large matrix. A runtime then holds the weights of one segment at a time.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::proto::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use super::slices::is_slice;
use crate::base::{Code, Problem, Result};
use crate::model::facts::in_layer;

/// A part of a graph, as a model.
pub struct Segment {
    /// The model. Its outputs are what later segments read, and the observed values.
    pub model: ModelProto,
    /// Values that it reads: inputs of the graph, or outputs of earlier segments.
    pub reads: Vec<String>,
    /// The observed values that it computes.
    pub shows: Vec<String>,
}

/// The segments of `model`, in the order in which they run. Values for which `is_observed` holds
/// become outputs.
pub fn segments(
    model: &ModelProto,
    is_observed: impl Fn(&ValueInfoProto) -> bool,
) -> Result<Vec<Segment>> {
    let Some(graph) = &model.graph else {
        return Err(malformed("this ONNX file has no graph".into()));
    };
    let mut types: HashMap<&str, &ValueInfoProto> = HashMap::new();
    for values in [&graph.input, &graph.output, &graph.value_info] {
        for value in values {
            types.insert(&value.name, value);
        }
    }
    let mut constants: HashSet<&str> = HashSet::new();
    for tensor in &graph.initializer {
        constants.insert(&tensor.name);
    }
    let mut segments = vec![];
    // What the segments after the current one read.
    let mut read_later: BTreeSet<&str> = BTreeSet::new();
    for nodes in split_nodes(&graph.node).into_iter().rev() {
        let mut computed: BTreeSet<&str> = BTreeSet::new();
        let mut used: BTreeSet<&str> = BTreeSet::new();
        for node in nodes {
            for name in &node.output {
                computed.insert(name);
            }
            for name in &node.input {
                if !name.is_empty() {
                    used.insert(name);
                }
            }
        }
        let mut part = GraphProto {
            node: nodes.to_vec(),
            name: graph.name.clone(),
            ..GraphProto::default()
        };
        for tensor in &graph.initializer {
            if used.contains(tensor.name.as_str()) {
                part.initializer.push(tensor.clone());
            }
        }
        let (mut reads, mut shows) = (vec![], vec![]);
        for &name in &used {
            if !computed.contains(name) && !constants.contains(name) {
                part.input.push(type_of(&types, name)?);
                reads.push(name);
            }
        }
        for &name in &computed {
            let value = types.get(name);
            let is_shown = !is_slice(name) && value.is_some_and(|value| is_observed(value));
            if is_shown {
                shows.push(name.to_string());
            }
            if is_shown || read_later.contains(name) {
                part.output.push(type_of(&types, name)?);
            } else if let Some(&value) = value {
                part.value_info.push(value.clone());
            }
        }
        segments.push(Segment {
            model: ModelProto {
                graph: Some(part),
                ..model.clone_without_graph()
            },
            reads: reads.iter().map(|name| name.to_string()).collect(),
            shows,
        });
        read_later.extend(reads);
    }
    segments.reverse();
    Ok(segments)
}

/// `nodes`, split where the layer changes.
fn split_nodes(nodes: &[NodeProto]) -> Vec<&[NodeProto]> {
    let mut runs = vec![];
    let mut start = 0;
    let mut current = None;
    for (index, node) in nodes.iter().enumerate() {
        let Some(layer) = layer(&node.name) else {
            continue;
        };
        if current.is_some() && current != Some(layer) {
            runs.push(&nodes[start..index]);
            start = index;
        }
        current = Some(layer);
    }
    runs.push(&nodes[start..]);
    runs
}

/// The layer or the slice that a node belongs to, by its name: empty outside of the layers, `None`
/// for a node that stays with the node before it.
fn layer(node: &str) -> Option<&str> {
    if node.starts_with("past_") {
        return None;
    }
    if is_slice(node) {
        return Some(node);
    }
    match in_layer(node) {
        Some((number, _)) => Some(number),
        None => Some(""),
    }
}

fn type_of(types: &HashMap<&str, &ValueInfoProto>, name: &str) -> Result<ValueInfoProto> {
    match types.get(name) {
        Some(&value) => Ok(value.clone()),
        None => Err(malformed(format!("`{name}` has no type"))),
    }
}

fn malformed(message: String) -> Problem {
    Problem::new(Code::OnnxMalformed, message)
}

impl ModelProto {
    fn clone_without_graph(&self) -> ModelProto {
        ModelProto {
            ir_version: self.ir_version,
            producer_name: self.producer_name.clone(),
            producer_version: self.producer_version.clone(),
            graph: None,
            opset_import: self.opset_import.clone(),
            functions: self.functions.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::element;
    use super::super::{Builder, Value};
    use super::*;

    /// Segments of a graph whose nodes are `NAME = A + B`.
    fn check(nodes: &[[&str; 3]], observed: &str, expected: &[&str]) {
        let mut builder = Builder::default();
        let value = |name: &str| Value {
            name: name.into(),
            dims: vec![2],
        };
        builder.input("x", element::FLOAT, &[2]);
        for [name, a, b] in nodes {
            builder.elementwise("Add", name, &value(a), &value(b));
        }
        builder.output(&value(nodes[nodes.len() - 1][0]));
        let mut lines = vec![];
        for segment in segments(&builder.finish("g"), |value| value.name == observed).unwrap() {
            let graph = segment.model.graph.unwrap();
            let mut nodes = vec![];
            for node in graph.node {
                nodes.push(node.name);
            }
            let mut outputs = vec![];
            for value in graph.output {
                outputs.push(value.name);
            }
            lines.push(format!(
                "{}: {} -> {} ({})",
                segment.reads.join(" "),
                nodes.join(" "),
                outputs.join(" "),
                segment.shows.join(" ")
            ));
        }
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_decoder_is_split_between_its_layers() {
        check(
            &[
                ["embedding", "x", "x"],
                ["blk.0.a", "embedding", "x"],
                ["past_key_0_out", "blk.0.a", "x"],
                ["blk.0.b", "blk.0.a", "past_key_0_out"],
                ["blk.1.a", "blk.0.b", "embedding"],
                ["logits", "blk.1.a", "blk.1.a"],
            ],
            "past_key_0_out",
            &[
                "x: embedding -> embedding ()",
                "embedding x: blk.0.a past_key_0_out blk.0.b -> blk.0.b past_key_0_out \
                 (past_key_0_out)",
                "blk.0.b embedding: blk.1.a -> blk.1.a ()",
                "blk.1.a: logits ->  ()",
            ],
        );
    }
}
