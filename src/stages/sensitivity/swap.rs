//! Replaces the encoding of one tensor of a graph by that of another graph.

use std::collections::BTreeSet;

use crate::base::{Code, Problem, Result};
use crate::model::onnx::proto::{GraphProto, ModelProto, NodeProto};

/// `base` with the calls and blobs of tensor `name` from `other`, and the nodes that compute what
/// these calls read and `base` does not have. Both are graphs of one model: their nodes have the
/// same names.
pub(super) fn swap(mut base: ModelProto, other: &ModelProto, name: &str) -> Result<ModelProto> {
    let problem = |what: &str| {
        Problem::new(
            Code::SensitivityGraph,
            format!("cannot change `{name}`: {what}"),
        )
    };
    let (Some(graph), Some(other_graph)) = (&mut base.graph, &other.graph) else {
        return Err(problem("there is no graph"));
    };
    let mut known = names(graph);
    let mut nodes = vec![];
    let mut changed = 0;
    for node in &graph.node {
        if !reads(node, name) {
            nodes.push(node.clone());
            continue;
        }
        let Some(call) = find_call(&other_graph.node, node, name) else {
            let what = format!("the other graph has no call `{}`", node.name);
            return Err(problem(&what));
        };
        for producer in producers(other_graph, call, &known) {
            known.extend(producer.output.iter().cloned());
            nodes.push(producer.clone());
        }
        nodes.push(call.clone());
        changed += 1;
    }
    if changed == 0 {
        return Err(problem("no call reads it"));
    }
    let read: BTreeSet<&String> = nodes.iter().flat_map(|node| &node.input).collect();
    let typed = graph.value_info.iter().chain(&graph.output);
    let typed: BTreeSet<String> = typed.map(|info| info.name.clone()).collect();
    for value in &other_graph.value_info {
        if known.contains(&value.name) && !typed.contains(&value.name) {
            graph.value_info.push(value.clone());
        }
    }
    graph.initializer.retain(|blob| !is_blob(&blob.name, name));
    let constants = graph.initializer.iter().map(|blob| blob.name.clone());
    let constants: BTreeSet<String> = constants.collect();
    for blob in &other_graph.initializer {
        if read.contains(&blob.name) && !constants.contains(&blob.name) {
            graph.initializer.push(blob.clone());
        }
    }
    graph.node = nodes;
    for function in &other.functions {
        let mut existing = base.functions.iter();
        if !existing.any(|known| known.domain == function.domain && known.name == function.name) {
            base.functions.push(function.clone());
        }
    }
    Ok(base)
}

/// The nodes of `graph` that compute, from `known` values, what `call` reads.
fn producers<'a>(
    graph: &'a GraphProto,
    call: &NodeProto,
    known: &BTreeSet<String>,
) -> Vec<&'a NodeProto> {
    let mut needed: BTreeSet<&str> = BTreeSet::new();
    needed.extend(call.input.iter().map(String::as_str));
    let mut nodes = vec![];
    // A node comes after those that it reads from.
    for node in graph.node.iter().rev() {
        let mut outputs = node.output.iter();
        if outputs.any(|output| needed.contains(output.as_str()) && !known.contains(output)) {
            needed.extend(node.input.iter().map(String::as_str));
            nodes.push(node);
        }
    }
    nodes.reverse();
    nodes
}

/// The names of all values that `graph` computes or reads from outside.
fn names(graph: &GraphProto) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for node in &graph.node {
        names.extend(node.output.iter().cloned());
    }
    names.extend(graph.input.iter().map(|input| input.name.clone()));
    names
}

/// Whether `input` is a blob of tensor `name`.
fn is_blob(input: &str, name: &str) -> bool {
    match input.rsplit_once('/') {
        Some((owner, _)) => owner == name,
        None => false,
    }
}

fn reads(node: &NodeProto, name: &str) -> bool {
    node.input.iter().any(|input| is_blob(input, name))
}

/// The node of `nodes` that reads tensor `name` as `node` does.
fn find_call<'a>(nodes: &'a [NodeProto], node: &NodeProto, name: &str) -> Option<&'a NodeProto> {
    nodes
        .iter()
        .find(|call| call.name == node.name && call.output == node.output && reads(call, name))
}
