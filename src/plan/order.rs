//! The stages as a graph: no cycles, and an order in which every stage follows what it waits for.

use std::collections::{BTreeMap, BTreeSet};

use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::{DfsPostOrder, EdgeRef, Reversed};

use super::check::Checked;
use super::parse::TOOLS;
use super::source::Span;
use super::{Keep, PlannedStage, StageId};
use crate::base::{Code, Problem};

/// The stages in an order that follows the plan's own where it can, without the tools that nothing
/// needs. A cycle goes to `problems`.
pub fn in_order(checked: Vec<Checked>, problems: &mut Vec<Problem>) -> Vec<PlannedStage> {
    let graph = graph(&checked);
    let rings: Vec<Vec<NodeIndex>> = tarjan_scc(&graph);
    for mut ring in rings {
        ring.sort();
        problems.extend(cycle(&graph, &ring, &checked));
    }
    let mut order = vec![];
    let mut walk = DfsPostOrder::empty(Reversed(&graph));
    for start in graph.node_indices() {
        walk.move_to(start);
        while let Some(node) = walk.next(Reversed(&graph)) {
            order.push(node.index());
        }
    }
    let consumed: BTreeSet<StageId> = checked
        .iter()
        .flat_map(|checked| checked.stage.dependencies().cloned())
        .collect();
    let mut stages: Vec<Option<PlannedStage>> = checked
        .into_iter()
        .map(
            |Checked {
                 mut stage, keep, ..
             }| {
                let tool = stage.id.0.starts_with(TOOLS);
                stage.keep = match keep {
                    _ if tool => Keep::Nothing,
                    Some(keep) => keep,
                    None if consumed.contains(&stage.id) => Keep::Nothing,
                    None => Keep::All,
                };
                (!tool || consumed.contains(&stage.id)).then_some(stage)
            },
        )
        .collect();
    order
        .into_iter()
        .filter_map(|index| stages[index].take())
        .collect()
}

/// Giver -> taker; an edge carries where the taker names the giver.
fn graph(checked: &[Checked]) -> DiGraph<(), Span> {
    let mut graph = DiGraph::new();
    let nodes: BTreeMap<&StageId, NodeIndex> = checked
        .iter()
        .map(|checked| (&checked.stage.id, graph.add_node(())))
        .collect();
    for consumer in checked {
        let stage = &consumer.stage;
        let tools = stage.tools.values().map(|tool| (tool, &stage.at));
        for (producer, at) in consumer.edges.iter().map(|(id, at)| (id, at)).chain(tools) {
            if let (Some(&from), Some(&to)) = (nodes.get(producer), nodes.get(&stage.id)) {
                graph.add_edge(from, to, at.clone());
            }
        }
    }
    graph
}

/// A cycle in a strongly connected component, if it has one.
fn cycle(graph: &DiGraph<(), Span>, ring: &[NodeIndex], checked: &[Checked]) -> Option<Problem> {
    // In a component every node has an edge to another of its nodes, so the walk comes back to
    // where it was.
    let mut path: Vec<NodeIndex> = vec![*ring.first()?];
    let mut places: Vec<Span> = vec![];
    let start = loop {
        let waits_for = graph
            .edges_directed(*path.last()?, petgraph::Incoming)
            .filter(|e| ring.contains(&e.source()));
        let edge = waits_for.min_by_key(|edge| edge.source())?;
        places.push(edge.weight().clone());
        match path.iter().position(|node| *node == edge.source()) {
            Some(start) => break start,
            None => path.push(edge.source()),
        }
    };
    let name = |node: &NodeIndex| checked[node.index()].stage.name.clone();
    let (path, places) = (&path[start..], &places[start..]);
    if let [itself] = path {
        let message = format!("`{}` waits for itself", name(itself));
        let problem =
            Problem::new(Code::PlanCycle, message).help("name another stage as this input");
        return Some(problem.at(places.first()?.clone(), "here"));
    }
    let names: Vec<String> = path.iter().chain(path.first()).map(name).collect();
    let message = format!("stages wait for each other: {}", names.join(" -> "));
    let labels = names
        .iter()
        .zip(places)
        .map(|(name, place)| (place.clone(), format!("`{name}` waits for this")));
    let problem = Problem::new(Code::PlanCycle, message)
        .help("one of these inputs must come from another stage");
    Some(Problem {
        labels: labels.collect(),
        ..problem
    })
}
