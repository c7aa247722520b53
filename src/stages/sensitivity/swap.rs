//! One tensor of a graph, held as another graph holds it.

use crate::base::{Code, Problem, Result};
use crate::model::onnx::proto::{GraphProto, ModelProto, NodeProto};

/// `base` with the calls and blobs of tensor `name` that `other` has. Both are graphs of one model:
/// their nodes bear the same names.
pub(super) fn swap(mut base: ModelProto, other: &ModelProto, name: &str) -> Result<ModelProto> {
    let problem = |what: &str| {
        Problem::new(
            Code::SensitivityGraph,
            format!("cannot change `{name}`: {what}"),
        )
    };
    let (Some(graph), Some(theirs)) = (base.graph.as_mut(), other.graph.as_ref()) else {
        return Err(problem("there is no graph"));
    };
    let is_blob = |input: &String| {
        input
            .rsplit_once('/')
            .is_some_and(|(owner, _)| owner == name)
    };
    let calls: Vec<&NodeProto> = theirs
        .node
        .iter()
        .filter(|node| node.input.iter().any(is_blob))
        .collect();
    let mut changed = 0;
    for node in graph
        .node
        .iter_mut()
        .filter(|node| node.input.iter().any(is_blob))
    {
        let call = calls
            .iter()
            .find(|call| call.name == node.name && call.output == node.output);
        *node = (*call
            .ok_or_else(|| problem(&format!("the other graph has no call `{}`", node.name)))?)
        .clone();
        changed += 1;
    }
    if changed == 0 {
        return Err(problem("no call reads it"));
    }
    let theirs_blobs = |graph: &GraphProto| {
        graph
            .initializer
            .iter()
            .filter(|blob| is_blob(&blob.name))
            .cloned()
            .collect::<Vec<_>>()
    };
    graph.initializer.retain(|blob| !is_blob(&blob.name));
    graph.initializer.extend(theirs_blobs(theirs));
    for function in &other.functions {
        if !base
            .functions
            .iter()
            .any(|known| (&known.domain, &known.name) == (&function.domain, &function.name))
        {
            base.functions.push(function.clone());
        }
    }
    Ok(base)
}
