//! `kiln plan`: shows what a build would run, and why.

use std::fmt::Write;

use serde_json::{Value, json};

use super::session::Session;
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::count;
use crate::engine::{Built, BuiltPart, JobState};
use crate::events::{Why, in_short};
use crate::plan::{Plan, PlannedStage};

/// Limit of the names that are printed of parts with the same reasons.
const MAX_NAMES: usize = 3;

/// Limit of the sets of reasons that are printed of one stage.
const MAX_GROUPS: usize = 8;

/// What to plan.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Only these stages and their dependencies [default: all that are not optional]
    #[arg(value_name = "STAGE")]
    stages: Vec<String>,
}

/// Prints what a build would run.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let session = Session::open(&args.plan, &args.stages, common, stages)?;
    let built = session.dry_run()?;
    common.print(&if common.json {
        json_lines(&session.plan, &built)
    } else {
        plan_text(&session.plan, &built)
    });
    Ok(Exit::Done)
}

/// Why a part would run; `None` if its result is in the cache.
pub(super) fn reasons_to_run(part: &BuiltPart) -> Option<&[Why]> {
    match &part.state {
        JobState::Ready { why } => Some(why),
        _ => None,
    }
}

/// The incomplete dependencies of `stage`: its parts are unknown before these are built.
pub(super) fn missing_dependencies<'a>(stage: &'a PlannedStage, built: &Built) -> Vec<&'a str> {
    let mut missing = vec![];
    for dependency in stage.dependencies() {
        if !built.completed.contains_key(dependency) {
            missing.push(dependency.0.as_str());
        }
    }
    missing.sort();
    missing.dedup();
    missing
}

/// The parts of `stage`.
pub(super) fn parts_of<'a>(stage: &PlannedStage, built: &'a Built) -> Vec<&'a BuiltPart> {
    let parts = built.parts.iter();
    parts.filter(|part| part.id.stage == stage.id.0).collect()
}

// Invariant: writing to a String cannot fail, so the results of `writeln!` are ignored.

fn plan_text(plan: &Plan, built: &Built) -> String {
    let mut width = 0;
    for stage in &plan.stages {
        width = width.max(stage.id.0.len());
    }
    let mut out = String::new();
    let (mut to_run, mut cached, mut waiting) = (0, 0, 0);
    for stage in &plan.stages {
        let parts = parts_of(stage, built);
        let groups = group_by_reasons(&parts);
        let mut running = 0;
        for (_, names) in &groups {
            running += names.len();
        }
        let missing = missing_dependencies(stage, built);
        to_run += running;
        cached += parts.len() - running;
        waiting += usize::from(!missing.is_empty());
        let state = match running {
            _ if !missing.is_empty() => format!("waits for {}", missing.join(", ")),
            0 => "in the cache".into(),
            _ => format!("{running} of {} would run", parts.len()),
        };
        let _ = writeln!(out, "{:width$}  {state}", stage.id.0);
        let mut not_shown = 0;
        for (index, (reasons, names)) in groups.iter().enumerate() {
            if index < MAX_GROUPS {
                let line = group_line(reasons, names);
                let _ = writeln!(out, "{:width$}    {line}", "");
            } else {
                not_shown += names.len();
            }
        }
        if not_shown > 0 {
            let parts = count(not_shown, "more part");
            let _ = writeln!(
                out,
                "{:width$}    {parts} for other reasons: see `kiln explain`",
                ""
            );
        }
    }
    let waiting = match waiting {
        0 => String::new(),
        1 => "; 1 stage waits: its parts are not known yet".into(),
        many => format!("; {many} stages wait: their parts are not known yet"),
    };
    let to_run = count(to_run, "part");
    let _ = writeln!(
        out,
        "{to_run} would run, {cached} are in the cache{waiting}"
    );
    out
}

/// The first names of a group of parts, and its reasons.
fn group_line(reasons: &[Why], names: &[&str]) -> String {
    let shown = &names[..names.len().min(MAX_NAMES)];
    let mut line = shown.join(", ");
    // The only part of a stage has no name.
    let separator = if line.is_empty() { "" } else { ": " };
    if names.len() > MAX_NAMES {
        line += &format!(" and {} more", names.len() - MAX_NAMES);
    }
    line + separator + &in_short(reasons)
}

/// The parts that would run, grouped by their reasons, in the order of the first parts.
fn group_by_reasons<'a>(parts: &[&'a BuiltPart]) -> Vec<(&'a [Why], Vec<&'a str>)> {
    let mut groups: Vec<(&[Why], Vec<&str>)> = vec![];
    for part in parts {
        let Some(reasons) = reasons_to_run(part) else {
            continue;
        };
        match groups.iter_mut().find(|(group, _)| *group == reasons) {
            Some((_, names)) => names.push(&part.id.part),
            None => groups.push((reasons, vec![&part.id.part])),
        }
    }
    groups
}

/// What a build would do with a part, and why.
pub(super) fn part_json(part: &BuiltPart) -> Value {
    let reasons = reasons_to_run(part);
    json!({
        "part": part.id.to_string(),
        "does": if reasons.is_some() { "run" } else { "hit" },
        "why": reasons.unwrap_or_default(),
        "key": part.task.key,
    })
}

/// One line per part, and one per stage whose parts are not known yet.
fn json_lines(plan: &Plan, built: &Built) -> String {
    let mut out = String::new();
    for stage in &plan.stages {
        for part in parts_of(stage, built) {
            let _ = writeln!(out, "{}", part_json(part));
        }
        let missing = missing_dependencies(stage, built);
        if !missing.is_empty() {
            let line = json!({"stage": stage.id, "does": "wait", "for": missing});
            let _ = writeln!(out, "{line}");
        }
    }
    out
}
