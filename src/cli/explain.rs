//! `kiln explain`: shows why a part would run, with old and new values, and its inputs.

use std::fmt::Write;

use serde_json::json;

use super::plan::{missing_dependencies, part_json, parts_of, reasons_to_run};
use super::session::Session;
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::{Code, Problem};
use crate::engine::{Built, BuiltPart};
use crate::plan::{Plan, PlannedStage};

/// What to explain.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// A stage or a part, for example `weights` or `weights/blk.0.attn_q.weight` [default: all
    /// parts that would run]
    part: Option<String>,
}

/// Explains one part, all parts of a stage, or all parts that would run.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let session = Session::open(&args.plan, &[], common, stages)?;
    let built = session.dry_run()?;
    let parts: Vec<&BuiltPart> = match &args.part {
        None => {
            let parts = built.parts.iter();
            parts
                .filter(|part| reasons_to_run(part).is_some())
                .collect()
        }
        Some(name) => {
            let stage = stage_of(&session.plan, name)?;
            let missing = missing_dependencies(stage, &built);
            if !missing.is_empty() {
                common.print(&if common.json {
                    let line = json!({"stage": stage.id, "does": "wait", "for": missing});
                    format!("{line}\n")
                } else {
                    let missing = missing.join(", ");
                    format!("{}: not known before {missing} is built\n", stage.id)
                });
                return Ok(Exit::Done);
            }
            find_parts(stage, name, &built)?
        }
    };
    let mut text = String::new();
    for part in parts {
        text += &if common.json {
            json_line(part)
        } else {
            part_text(part)
        };
    }
    if text.is_empty() && !common.json {
        text = "nothing would run\n".into();
    }
    common.print(&text);
    Ok(Exit::Done)
}

/// The stage of `name`, which is `STAGE` or `STAGE/PART`.
fn stage_of<'a>(plan: &'a Plan, name: &str) -> Result<&'a PlannedStage, Problem> {
    let mut ids = vec![];
    for stage in &plan.stages {
        let id = stage.id.0.as_str();
        if let Some(rest) = name.strip_prefix(id)
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return Ok(stage);
        }
        ids.push(id);
    }
    let message = format!("the plan has no stage for `{name}`");
    let help = format!("it has: {}", ids.join(", "));
    Err(Problem::new(Code::CallUnknownStage, message).help(help))
}

/// The parts of `stage` that `name` refers to: all of them, or one.
fn find_parts<'a>(
    stage: &PlannedStage,
    name: &str,
    built: &'a Built,
) -> Result<Vec<&'a BuiltPart>, Problem> {
    let parts = parts_of(stage, built);
    if name == stage.id.0 {
        return Ok(parts);
    }
    let mut found = vec![];
    let mut ids = vec![];
    for part in parts {
        let id = part.id.to_string();
        if id == name {
            found.push(part);
        }
        ids.push(id);
    }
    if found.is_empty() {
        let message = format!("there is no part `{name}`");
        let help = format!("`{}` has: {}", stage.id, ids.join(", "));
        return Err(Problem::new(Code::CallUnknownPart, message).help(help));
    }
    Ok(found)
}

// Invariant: writing to a String cannot fail, so the results of `writeln!` are ignored.

fn part_text(part: &BuiltPart) -> String {
    let mut out = String::new();
    match reasons_to_run(part) {
        None => {
            let _ = writeln!(out, "{}: hit", part.id);
        }
        Some(reasons) => {
            let _ = writeln!(out, "{}: would run", part.id);
            for reason in reasons {
                let _ = writeln!(out, "  {reason}");
            }
        }
    }
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
    let mut line = part_json(part);
    line["action"] = json!(*part.task.action);
    format!("{line}\n")
}
