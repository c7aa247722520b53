//! `kiln plan`: says what a build would run or skip, and why.

use std::fmt::Write;

use serde_json::json;

use super::session::Session;
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::count;
use crate::engine::{Built, BuiltPart, JobState};
use crate::events::{Why, in_short};
use crate::plan::{Plan, PlannedStage};

/// How many parts that run for the same reasons are named; `kiln explain` says all.
const NAMED: usize = 3;

/// How many reasons, or sets of them, a stage is shown with.
const GROUPS: usize = 8;

/// What to plan.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Only these stages and what they need [default: all]
    #[arg(value_name = "STAGE")]
    stages: Vec<String>,
}

/// Looks into the cache and runs nothing.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let session = Session::open(&args.plan, &args.stages, common, stages)?;
    let built = session.dry_run()?;
    common.print(&if common.json {
        json_lines(&session.plan, &built)
    } else {
        text(&session.plan, &built)
    });
    Ok(Exit::Done)
}

/// Why a part would run; `None` if the cache has it.
pub(super) fn why(part: &BuiltPart) -> Option<&[Why]> {
    match &part.state {
        JobState::Ready { why } => Some(why),
        _ => None,
    }
}

/// The stages whose artifacts a build would have to make first, before anybody can tell what
/// `stage` would do.
pub(super) fn waits_for<'a>(stage: &'a PlannedStage, built: &Built) -> Vec<&'a str> {
    let mut producers: Vec<&str> = stage
        .dependencies()
        .filter(|producer| !built.completed.contains_key(producer))
        .map(|producer| producer.0.as_str())
        .collect();
    producers.sort();
    producers.dedup();
    producers
}

fn parts<'a>(stage: &PlannedStage, built: &'a Built) -> Vec<&'a BuiltPart> {
    built
        .parts
        .iter()
        .filter(|part| part.id.stage == stage.id.0)
        .collect()
}

fn text(plan: &Plan, built: &Built) -> String {
    let width = plan
        .stages
        .iter()
        .map(|stage| stage.id.0.len())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    let (mut to_run, mut there, mut waiting) = (0, 0, 0);
    for stage in &plan.stages {
        let parts = parts(stage, built);
        let running = parts.iter().filter(|part| why(part).is_some()).count();
        let waits = waits_for(stage, built);
        to_run += running;
        there += parts.len() - running;
        waiting += usize::from(!waits.is_empty());
        let says = match running {
            _ if !waits.is_empty() => format!("waits for {}", waits.join(", ")),
            0 => "in the cache".into(),
            _ => format!("{running} of {} would run", parts.len()),
        };
        // Invariant: writing to a String cannot fail.
        let _ = writeln!(out, "{:width$}  {says}", stage.id.0);
        let groups = by_reasons(&parts);
        for (reasons, names) in groups.iter().take(GROUPS) {
            let more = names.len().saturating_sub(NAMED);
            let shown = names
                .iter()
                .take(NAMED)
                .copied()
                .collect::<Vec<_>>()
                .join(", ");
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let colon = if shown.is_empty() { "" } else { ": " };
            let _ = writeln!(
                out,
                "{:width$}    {shown}{more}{colon}{}",
                "",
                in_short(reasons)
            );
        }
        let others: usize = groups
            .iter()
            .skip(GROUPS)
            .map(|(_, names)| names.len())
            .sum();
        if others > 0 {
            let others = count(others, "part");
            let _ = writeln!(
                out,
                "{:width$}    {others} more, for reasons of their own: `kiln explain` says all",
                ""
            );
        }
    }
    let waiting = match waiting {
        0 => String::new(),
        1 => "; 1 stage waits: what it would do is not known before".into(),
        many => format!("; {many} stages wait: what they would do is not known before"),
    };
    let _ = writeln!(
        out,
        "{} would run, {there} are in the cache{waiting}",
        count(to_run, "part")
    );
    out
}

/// The parts that would run, by all their reasons, in the order of their first parts.
fn by_reasons<'a>(parts: &[&'a BuiltPart]) -> Vec<(&'a [Why], Vec<&'a str>)> {
    let mut groups: Vec<(&[Why], Vec<&str>)> = vec![];
    for part in parts {
        let Some(why) = why(part) else { continue };
        match groups.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(&part.id.part),
            None => groups.push((why, vec![&part.id.part])),
        }
    }
    groups
}

/// A line a part, and a line a stage whose parts are not known yet.
fn json_lines(plan: &Plan, built: &Built) -> String {
    let mut out = String::new();
    for stage in &plan.stages {
        for part in parts(stage, built) {
            let does = if why(part).is_some() { "run" } else { "hit" };
            let line = json!({"part": part.id.to_string(), "does": does, "why": why(part).unwrap_or_default(), "key": part.task.key});
            let _ = writeln!(out, "{line}");
        }
        let waits = waits_for(stage, built);
        if !waits.is_empty() {
            let _ = writeln!(
                out,
                "{}",
                json!({"stage": stage.id, "does": "wait", "for": waits})
            );
        }
    }
    out
}
