//! `kiln show`: prints the stages of a plan as text, as a Graphviz or Mermaid graph, or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::plan::{Keep, Plan, PlannedStage};
use crate::records::Kept;

/// Which plan, and in which format.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Output format: lines of text, Graphviz, or Mermaid for Markdown; ignored with --json
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Dot,
    Mermaid,
}

/// Prints the stages.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let plan = args.plan.load(stages)?;
    common.print(&match args.format {
        _ if common.json => json_line(&plan),
        Format::Text => stage_lines(&plan),
        Format::Dot => dot_graph(&plan),
        Format::Mermaid => mermaid_graph(&plan),
    });
    Ok(Exit::Done)
}

/// One line per stage, each after its dependencies. `*` marks stages with artifacts, `?` optional
/// stages.
fn stage_lines(plan: &Plan) -> String {
    let (mut id_width, mut kind_width) = (0, 0);
    for stage in &plan.stages {
        id_width = id_width.max(stage.id.0.len());
        kind_width = kind_width.max(stage.kind.len());
    }
    let mut text = String::new();
    for stage in &plan.stages {
        let mut inputs = vec![];
        for (slot, producers) in &stage.slots {
            let ids: Vec<&str> = producers.iter().map(|id| id.0.as_str()).collect();
            inputs.push(format!("{slot} = {}", ids.join(", ")));
        }
        for tool in stage.tools.values() {
            inputs.push(tool.0.clone());
        }
        let mark = match stage.keep {
            _ if stage.optional => "?",
            Keep::Nothing => " ",
            _ => "*",
        };
        let line = format!(
            "{mark} {:id_width$}  {:kind_width$}  {}",
            stage.id.0,
            stage.kind,
            inputs.join("; ")
        );
        text += line.trim_end();
        text += "\n";
    }
    text
}

/// All stages with their dependencies, as one line of JSON.
fn json_line(plan: &Plan) -> String {
    let mut stages: Vec<Value> = vec![];
    for stage in &plan.stages {
        stages.push(json!({
            "stage": stage.id, "kind": stage.kind, "inputs": stage.slots, "tools": stage.tools,
            "keep": Kept::of(&stage.keep), "optional": stage.optional,
        }));
    }
    format!("{}\n", json!({"plan": plan.name, "stages": stages}))
}

/// An edge of the stage graph.
struct Edge<'a> {
    producer: &'a str,
    consumer: &'a str,
    /// The slot or tool of the consumer.
    role: &'a str,
}

fn edges(plan: &Plan) -> Vec<Edge<'_>> {
    let mut edges = vec![];
    for stage in &plan.stages {
        let mut inputs = vec![];
        for (slot, producers) in &stage.slots {
            for producer in producers {
                inputs.push((producer, slot));
            }
        }
        for (tool, producer) in &stage.tools {
            inputs.push((producer, tool));
        }
        for (producer, role) in inputs {
            edges.push(Edge {
                producer: &producer.0,
                consumer: &stage.id.0,
                role,
            });
        }
    }
    edges
}

fn has_artifacts(stage: &PlannedStage) -> bool {
    stage.keep != Keep::Nothing
}

// Invariant: names have no quotes, and writing to a String cannot fail.

fn dot_graph(plan: &Plan) -> String {
    let mut out = format!(
        "digraph \"{}\" {{\n  rankdir = LR;\n  node [shape = box];\n",
        plan.name
    );
    for stage in &plan.stages {
        let border = if has_artifacts(stage) {
            ", peripheries = 2"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "  \"{0}\" [label = \"{0}\\n{1}\"{border}];",
            stage.id, stage.kind
        );
    }
    for edge in edges(plan) {
        let _ = writeln!(
            out,
            "  \"{}\" -> \"{}\" [label = \"{}\"];",
            edge.producer, edge.consumer, edge.role
        );
    }
    out + "}\n"
}

fn mermaid_graph(plan: &Plan) -> String {
    let mut out = String::from("flowchart LR\n");
    let mut numbers = BTreeMap::new();
    for (number, stage) in plan.stages.iter().enumerate() {
        numbers.insert(stage.id.0.as_str(), number);
        let (open, close) = if has_artifacts(stage) {
            ("[[", "]]")
        } else {
            ("[", "]")
        };
        let _ = writeln!(
            out,
            "  s{number}{open}\"{}<br/><i>{}</i>\"{close}",
            stage.id, stage.kind
        );
    }
    for edge in edges(plan) {
        let (producer, consumer) = (numbers[edge.producer], numbers[edge.consumer]);
        let _ = writeln!(out, "  s{producer} -- {} --> s{consumer}", edge.role);
    }
    out
}
