//! Replaces the encoding of one tensor of a graph by that of another graph.

use crate::base::{Code, Problem, Result};
use crate::model::onnx::proto::{ModelProto, NodeProto};

/// `base` with the calls and blobs of tensor `name` from `other`. Both are graphs of one model:
/// their nodes have the same names.
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
    let mut changed = 0;
    for node in &mut graph.node {
        if !reads(node, name) {
            continue;
        }
        let Some(call) = find_call(&other_graph.node, node, name) else {
            let what = format!("the other graph has no call `{}`", node.name);
            return Err(problem(&what));
        };
        node.clone_from(call);
        changed += 1;
    }
    if changed == 0 {
        return Err(problem("no call reads it"));
    }
    graph.initializer.retain(|blob| !is_blob(&blob.name, name));
    for blob in &other_graph.initializer {
        if is_blob(&blob.name, name) {
            graph.initializer.push(blob.clone());
        }
    }
    for function in &other.functions {
        let mut existing = base.functions.iter();
        if !existing.any(|known| known.domain == function.domain && known.name == function.name) {
            base.functions.push(function.clone());
        }
    }
    Ok(base)
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
