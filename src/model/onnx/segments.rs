//! Cuts a graph into models that run one after the other: one a layer and one a slice of a large
//! matrix, so that a runtime never holds more weights than those.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::proto::{GraphProto, ModelProto, ValueInfoProto};
use super::slices::is_slice;
use crate::base::{Code, Problem, Result};
use crate::model::facts::in_layer;

/// A piece of a graph.
pub struct Segment {
    /// A model of its own. Its outputs are what later segments read, and what was wanted.
    pub model: ModelProto,
    /// Values that it reads: inputs of the graph, or made by an earlier segment.
    pub reads: Vec<String>,
    /// Its outputs that were wanted.
    pub shows: Vec<String>,
}

/// The segments of `model`, in the order in which they run.
pub fn segments(
    model: &ModelProto,
    wanted: impl Fn(&ValueInfoProto) -> bool,
) -> Result<Vec<Segment>> {
    let none = || Problem::new(Code::OnnxMalformed, "this ONNX file holds no graph");
    let graph = model.graph.as_ref().ok_or_else(none)?;
    let mut pieces: Vec<&[_]> = vec![];
    let (mut start, mut current) = (0, None);
    for (at, node) in graph.node.iter().enumerate() {
        let Some(layer) = layer(&node.name) else {
            continue;
        };
        if current
            .replace(layer)
            .is_some_and(|current| current != layer)
        {
            pieces.push(&graph.node[start..at]);
            start = at;
        }
    }
    pieces.push(&graph.node[start..]);

    let infos = graph
        .input
        .iter()
        .chain(&graph.output)
        .chain(&graph.value_info);
    let types: HashMap<&str, &ValueInfoProto> =
        infos.map(|value| (value.name.as_str(), value)).collect();
    let constants: HashSet<&str> = graph
        .initializer
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    let mut later: BTreeSet<&str> = BTreeSet::new();
    let mut segments = vec![];
    for nodes in pieces.into_iter().rev() {
        let made: BTreeSet<&str> = nodes
            .iter()
            .flat_map(|node| &node.output)
            .map(String::as_str)
            .collect();
        let used: BTreeSet<&str> = nodes
            .iter()
            .flat_map(|node| &node.input)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
            .collect();
        let reads: Vec<&str> = used
            .iter()
            .copied()
            .filter(|name| !made.contains(name) && !constants.contains(name))
            .collect();
        let info = |name: &str| {
            let missing = || Problem::new(Code::OnnxMalformed, format!("`{name}` has no type"));
            types
                .get(name)
                .map(|value| (*value).clone())
                .ok_or_else(missing)
        };
        let is_wanted =
            |name: &&str| !is_slice(name) && types.get(name).is_some_and(|value| wanted(value));
        let shows: Vec<&str> = made.iter().copied().filter(is_wanted).collect();
        let outputs: BTreeSet<&str> = made
            .intersection(&later)
            .copied()
            .chain(shows.iter().copied())
            .collect();
        let inside = made
            .difference(&outputs)
            .filter_map(|name| types.get(name).map(|value| (*value).clone()));
        let piece = GraphProto {
            node: nodes.to_vec(),
            name: graph.name.clone(),
            initializer: graph
                .initializer
                .iter()
                .filter(|tensor| used.contains(tensor.name.as_str()))
                .cloned()
                .collect(),
            input: reads.iter().map(|name| info(name)).collect::<Result<_>>()?,
            output: outputs
                .iter()
                .map(|name| info(name))
                .collect::<Result<_>>()?,
            value_info: inside.collect(),
        };
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let model = ModelProto {
            graph: Some(piece),
            ..model.clone_without_graph()
        };
        segments.push(Segment {
            model,
            reads: owned(&reads),
            shows: owned(&shows),
        });
        later.extend(reads);
    }
    segments.reverse();
    Ok(segments)
}

/// What part of the decoder a node belongs to, by its name; nothing, where the name does not tell.
fn layer(node: &str) -> Option<&str> {
    if node.starts_with("past_") {
        return None;
    }
    if is_slice(node) {
        return Some(node);
    }
    Some(in_layer(node).map_or("", |(number, _)| number))
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
    fn check(nodes: &[[&str; 3]], wanted: &str, expected: &[&str]) {
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
        let segments = segments(&builder.finish("g"), |value| value.name == wanted).unwrap();
        let line = |segment: &Segment| {
            let graph = segment.model.graph.as_ref().unwrap();
            let names = |names: Vec<&str>| names.join(" ");
            let nodes = names(graph.node.iter().map(|node| node.name.as_str()).collect());
            let outputs = names(
                graph
                    .output
                    .iter()
                    .map(|value| value.name.as_str())
                    .collect(),
            );
            format!(
                "{}: {nodes} -> {outputs} ({})",
                segment.reads.join(" "),
                segment.shows.join(" ")
            )
        };
        assert_eq!(segments.iter().map(line).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_decoder_is_cut_between_its_layers() {
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
