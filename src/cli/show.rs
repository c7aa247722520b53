//! `kiln show`: draws the stages of a plan.

use std::fmt::Write;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::plan::{Keep, Plan, PlannedStage};
use crate::records::Kept;

/// Which plan, and how.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// As lines of text, for Graphviz, or for Markdown; `--json` takes the place of each
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Dot,
    Mermaid,
}

/// Draws the plan.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let plan = args.plan.load(stages)?;
    common.print(&match args.format {
        _ if common.json => json_line(&plan),
        Format::Text => text(&plan),
        Format::Dot => dot(&plan),
        Format::Mermaid => mermaid(&plan),
    });
    Ok(Exit::Done)
}

/// A line a stage, each after those it waits for; `*` marks what is written out, `?` what is built
/// only where it is asked for.
fn text(plan: &Plan) -> String {
    let width = |of: fn(&PlannedStage) -> usize| plan.stages.iter().map(of).max().unwrap_or(0);
    let (ids, kinds) = (
        width(|stage| stage.id.0.len()),
        width(|stage| stage.kind.len()),
    );
    let line = |stage: &PlannedStage| {
        let slots = stage.slots.iter().map(|(slot, producers)| {
            let producers: Vec<&str> = producers
                .iter()
                .map(|producer| producer.0.as_str())
                .collect();
            format!("{slot} = {}", producers.join(", "))
        });
        let waits: Vec<String> = slots
            .chain(stage.tools.values().map(|tool| tool.0.clone()))
            .collect();
        let mark = match stage.keep {
            _ if stage.optional => "?",
            Keep::Nothing => " ",
            _ => "*",
        };
        let line = format!(
            "{mark} {:ids$}  {:kinds$}  {}",
            stage.id.0,
            stage.kind,
            waits.join("; ")
        );
        format!("{}\n", line.trim_end())
    };
    plan.stages.iter().map(line).collect()
}

/// All stages with what they take from, in one line.
fn json_line(plan: &Plan) -> String {
    let stage = |stage: &PlannedStage| {
        json!({
            "stage": stage.id, "kind": stage.kind, "inputs": stage.slots, "tools": stage.tools,
            "keep": Kept::of(&stage.keep), "optional": stage.optional,
        })
    };
    let stages: Vec<Value> = plan.stages.iter().map(stage).collect();
    format!("{}\n", json!({"plan": plan.name, "stages": stages}))
}

/// Giver, taker, and the slot or tool that the giver fills.
fn edges(plan: &Plan) -> impl Iterator<Item = (&str, &str, &str)> {
    plan.stages.iter().flat_map(|stage| {
        let slots = stage
            .slots
            .iter()
            .flat_map(|(slot, producers)| producers.iter().map(move |producer| (producer, slot)));
        let tools = stage.tools.iter().map(|(tool, producer)| (producer, tool));
        slots
            .chain(tools)
            .map(|(producer, role)| (producer.0.as_str(), stage.id.0.as_str(), role.as_str()))
    })
}

fn dot(plan: &Plan) -> String {
    let mut out = format!(
        "digraph \"{}\" {{\n  rankdir = LR;\n  node [shape = box];\n",
        plan.name
    );
    // Invariant: names hold no quotes, and writing to a String cannot fail.
    for stage in &plan.stages {
        let periphery = if stage.keep != Keep::Nothing {
            ", peripheries = 2"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "  \"{0}\" [label = \"{0}\\n{1}\"{periphery}];",
            stage.id, stage.kind
        );
    }
    for (producer, consumer, role) in edges(plan) {
        let _ = writeln!(
            out,
            "  \"{producer}\" -> \"{consumer}\" [label = \"{role}\"];"
        );
    }
    out + "}\n"
}

fn mermaid(plan: &Plan) -> String {
    let number = |id: &str| {
        plan.stages
            .iter()
            .position(|stage| stage.id.0 == id)
            .unwrap_or_default()
    };
    let mut out = String::from("flowchart LR\n");
    for (index, stage) in plan.stages.iter().enumerate() {
        let (open, close) = if stage.keep != Keep::Nothing {
            ("[[", "]]")
        } else {
            ("[", "]")
        };
        let _ = writeln!(
            out,
            "  s{index}{open}\"{}<br/><i>{}</i>\"{close}",
            stage.id, stage.kind
        );
    }
    for (producer, consumer, role) in edges(plan) {
        let _ = writeln!(
            out,
            "  s{} -- {role} --> s{}",
            number(producer),
            number(consumer)
        );
    }
    out
}
