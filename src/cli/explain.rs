//! `kiln explain`: says why a part would run again, with old and new value, and what it is made of.

use std::fmt::Write;

use serde_json::json;

use super::plan::{waits_for, why};
use super::session::Session;
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::{Code, Problem};
use crate::engine::{Built, BuiltPart};
use crate::plan::{Plan, PlannedStage};

/// What to explain.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// A stage or a part of it: `weights`, `weights/blk.0.attn_q.weight` [default: all that would
    /// run]
    part: Option<String>,
}

/// Explains a part, the parts of a stage, or all that would run.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let session = Session::open(&args.plan, &[], common, stages)?;
    let built = session.dry_run()?;
    let parts: Vec<&BuiltPart> = match &args.part {
        None => built
            .parts
            .iter()
            .filter(|part| why(part).is_some())
            .collect(),
        Some(name) => {
            let stage = stage_of(&session.plan, name)?;
            let waits = waits_for(stage, &built);
            if !waits.is_empty() {
                let answer = match common.json {
                    true => json!({"stage": stage.id, "does": "wait", "for": waits}).to_string(),
                    false => format!(
                        "{}: not known before {} is built",
                        stage.id,
                        waits.join(", ")
                    ),
                };
                common.print(&format!("{answer}\n"));
                return Ok(Exit::Done);
            }
            named(stage, name, &built)?
        }
    };
    let answer: String = parts
        .iter()
        .map(|part| {
            if common.json {
                json_line(part)
            } else {
                text(part)
            }
        })
        .collect();
    common.print(if answer.is_empty() && !common.json {
        "nothing would run\n"
    } else {
        &answer
    });
    Ok(Exit::Done)
}

/// The stage that `name` is, or lies in.
fn stage_of<'a>(plan: &'a Plan, name: &str) -> Result<&'a PlannedStage, Problem> {
    let holds = |stage: &&PlannedStage| {
        name.strip_prefix(&stage.id.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    plan.stages.iter().find(holds).ok_or_else(|| {
        let known: Vec<&str> = plan
            .stages
            .iter()
            .map(|stage| stage.id.0.as_str())
            .collect();
        Problem::new(
            Code::CallUnknownStage,
            format!("the plan has no stage for `{name}`"),
        )
        .help(format!("it has: {}", known.join(", ")))
    })
}

fn named<'a>(
    stage: &PlannedStage,
    name: &str,
    built: &'a Built,
) -> Result<Vec<&'a BuiltPart>, Problem> {
    let of_stage: Vec<&BuiltPart> = built
        .parts
        .iter()
        .filter(|part| part.id.stage == stage.id.0)
        .collect();
    if name == stage.id.0 {
        return Ok(of_stage);
    }
    let found: Vec<&BuiltPart> = of_stage
        .iter()
        .copied()
        .filter(|part| part.id.to_string() == name)
        .collect();
    if found.is_empty() {
        let all: Vec<String> = of_stage.iter().map(|part| part.id.to_string()).collect();
        return Err(
            Problem::new(Code::CallUnknownPart, format!("there is no part `{name}`"))
                .help(format!("`{}` has: {}", stage.id, all.join(", "))),
        );
    }
    Ok(found)
}

fn text(part: &BuiltPart) -> String {
    let mut out = String::new();
    // Invariant: writing to a String cannot fail.
    let _ = match why(part) {
        None => writeln!(out, "{}: hit", part.id),
        Some(why) => {
            let _ = writeln!(out, "{}: would run", part.id);
            why.iter().try_for_each(|why| writeln!(out, "  {why}"))
        }
    };
    let action = &part.task.action;
    let _ = writeln!(out, "  key    {}", part.task.key);
    let _ = writeln!(out, "  stage  {} version {}", action.stage, action.version);
    let _ = writeln!(out, "  params {}", action.params);
    if let Some(origin) = &action.origin {
        let _ = writeln!(out, "  from   {origin}");
    }
    for (name, input) in &action.inputs {
        let _ = writeln!(out, "  input  {name} {} {}", input.digest, input.facts);
    }
    for (tool, files) in &action.tools {
        for (file, content) in files {
            let _ = writeln!(out, "  tool   {tool}/{file} {}", content.digest);
        }
    }
    out
}

fn json_line(part: &BuiltPart) -> String {
    let does = if why(part).is_some() { "run" } else { "hit" };
    let line = json!({
        "part": part.id.to_string(), "does": does, "why": why(part).unwrap_or_default(), "key": part.task.key,
        "action": *part.task.action,
    });
    format!("{line}\n")
}
