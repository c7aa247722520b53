//! The stages as a graph: topological order and cycles.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::{DfsPostOrder, EdgeRef, Reversed};

use super::check::Checked;
use super::parse::TOOLS;
use super::source::Span;
use super::{Keep, PlannedStage, StageId};
use crate::base::{Code, Problem};

/// The stages in topological order, otherwise in the order of the text. Tools that no stage needs
/// are left out. Cycles are added to `problems`.
pub(super) fn in_order(checked: Vec<Checked>, problems: &mut Vec<Problem>) -> Vec<PlannedStage> {
    let graph = build_graph(&checked);
    for mut component in tarjan_scc(&graph) {
        component.sort();
        problems.extend(cycle(&graph, &component, &checked));
    }
    let mut order = vec![];
    let mut walk = DfsPostOrder::empty(Reversed(&graph));
    for start in graph.node_indices() {
        walk.move_to(start);
        while let Some(node) = walk.next(Reversed(&graph)) {
            order.push(node.index());
        }
    }
    let mut consumed: BTreeSet<StageId> = BTreeSet::new();
    for Checked { stage, .. } in &checked {
        consumed.extend(stage.dependencies().cloned());
    }
    let mut by_index: Vec<Option<Checked>> = checked.into_iter().map(Some).collect();
    let mut stages = vec![];
    for index in order {
        let Some(Checked {
            mut stage, keep, ..
        }) = by_index[index].take()
        else {
            continue;
        };
        let is_consumed = consumed.contains(&stage.id);
        let is_tool = stage.id.0.starts_with(TOOLS);
        if is_tool && !is_consumed {
            continue;
        }
        stage.keep = match keep {
            _ if is_tool => Keep::Nothing,
            Some(keep) => keep,
            None if is_consumed => Keep::Nothing,
            None => Keep::All,
        };
        stages.push(stage);
    }
    stages
}

/// Edges go from producer to consumer and have the place where the consumer names the producer.
fn build_graph(checked: &[Checked]) -> DiGraph<(), Span> {
    let mut graph = DiGraph::new();
    let mut nodes: BTreeMap<&StageId, NodeIndex> = BTreeMap::new();
    for Checked { stage, .. } in checked {
        nodes.insert(&stage.id, graph.add_node(()));
    }
    for Checked { stage, edges, .. } in checked {
        let mut producers: Vec<(&StageId, &Span)> = vec![];
        for (id, at) in edges {
            producers.push((id, at));
        }
        for tool in stage.tools.values() {
            producers.push((tool, &stage.at));
        }
        for (producer, at) in producers {
            if let (Some(&from), Some(&to)) = (nodes.get(producer), nodes.get(&stage.id)) {
                graph.add_edge(from, to, at.clone());
            }
        }
    }
    graph
}

/// A cycle in a strongly connected component, if it has one.
fn cycle(
    graph: &DiGraph<(), Span>,
    component: &[NodeIndex],
    checked: &[Checked],
) -> Option<Problem> {
    // Every node of a component has an edge from another of its nodes, so that the walk returns to
    // a node of its path. A component of one node without an edge has no cycle.
    let mut path: Vec<NodeIndex> = vec![*component.first()?];
    let mut places: Vec<Span> = vec![];
    let start = loop {
        let incoming = graph.edges_directed(*path.last()?, petgraph::Incoming);
        let edge = incoming
            .filter(|edge| component.contains(&edge.source()))
            .min_by_key(|edge| edge.source())?;
        places.push(edge.weight().clone());
        match path.iter().position(|node| *node == edge.source()) {
            Some(start) => break start,
            None => path.push(edge.source()),
        }
    };
    let mut names: Vec<&str> = vec![];
    for node in &path[start..] {
        names.push(&checked[node.index()].stage.name);
    }
    let places = &places[start..];
    if let [name] = names.as_slice() {
        let message = format!("`{name}` depends on itself");
        let problem =
            Problem::new(Code::PlanCycle, message).help("name another stage as this input");
        return Some(problem.at(places.first()?.clone(), "here"));
    }
    let first = *names.first()?;
    let message = format!(
        "stages depend on each other: {} -> {first}",
        names.join(" -> ")
    );
    let mut problem = Problem::new(Code::PlanCycle, message)
        .help("one of these inputs must come from another stage");
    for (name, place) in names.iter().zip(places) {
        problem = problem.at(place.clone(), format!("`{name}` depends on this"));
    }
    Some(problem)
}
