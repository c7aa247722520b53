//! Floor 4: text in, plan or all its problems out. Pure.

mod check;
mod common;
mod matrix;
mod merge;
mod order;
mod parse;
mod schema;
mod source;
mod source_map;
mod tables;
mod vars;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::action::Registry;
use crate::base::{Code, Problem};

pub use matrix::MAX_STAGES;
pub use schema::schema;
pub use source::Source;
pub use source_map::{MAX_TEXT_BYTES, SourceMap};
pub use tables::{Tables, tables};

/// So many mistakes are told: nobody mends more at once.
const MAX_TOLD: usize = 100;

/// Reads a plan: its texts, the variables set by the call (`--set`), and the stage kinds that
/// exist. Goes on after every mistake, so the error is all there is to mend, in the order of the
/// text; only a text that is not TOML, or not there, is not looked into further.
pub fn read(
    map: &SourceMap,
    sets: &[(String, String)],
    registry: &Registry,
) -> Result<Plan, Vec<Problem>> {
    let mut problems = map.problems().to_vec();
    let plan = if problems.is_empty() {
        check(map, sets, registry, &mut problems)
    } else {
        Plan::default()
    };
    if problems.is_empty() {
        return Ok(plan);
    }
    problems.sort_by_key(|problem| place(problem).map_or(0, |at| at.start));
    // The instances of a stage share its mistakes.
    let mut told = BTreeSet::new();
    problems.retain(|problem| told.insert(format!("{problem:?}")));
    if problems.len() > MAX_TOLD {
        let message = format!("and {} more mistakes", problems.split_off(MAX_TOLD).len());
        problems.push(Problem::new(Code::PlanMore, message).help("mend these first"));
    }
    Err(problems)
}

fn check(
    map: &SourceMap,
    sets: &[(String, String)],
    registry: &Registry,
    problems: &mut Vec<Problem>,
) -> Plan {
    let draft = parse::parse(map, sets, registry, problems);
    let unfilled: Vec<Range<usize>> = problems
        .iter()
        .filter(|p| is_unfilled(p))
        .flat_map(place)
        .collect();
    let checked = check::check(&draft, registry, problems);
    let stages = order::in_order(checked, problems);
    // A value with a hole where its variable should be is no news to complain of.
    let follows = |problem: &Problem| {
        place(problem).is_some_and(|at| {
            unfilled
                .iter()
                .any(|hole| at.start <= hole.start && hole.end <= at.end)
        })
    };
    problems.retain(|problem| is_unfilled(problem) || !follows(problem));
    Plan {
        name: draft.name,
        stages,
        texts: vec![],
    }
}

fn place(problem: &Problem) -> Option<Range<usize>> {
    problem.labels.first().map(|(at, _)| at.clone())
}

/// Whether a `${...}` could not be filled in.
fn is_unfilled(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::PlanUnknownVariable | Code::PlanVariable | Code::PlanAxis
    )
}

/// A stage's own name: `weights`; `npu.sm8650` for an instance of `npu`; `tools.qnn` for the
/// implicit stage of a tool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct StageId(pub String);

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checked plan: every stage kind, parameter, slot and tool exists and fits, and there is no
/// cycle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// `[plan] name`.
    pub name: String,
    /// The stages, in a topological order that follows the plan's own where it can.
    pub stages: Vec<PlannedStage>,
    /// The files that its text was read from.
    pub texts: Vec<PathBuf>,
}

/// One stage of a checked plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedStage {
    /// Its own name.
    pub id: StageId,
    /// Its name in the plan, which all its instances share.
    pub name: String,
    /// Its kind, which the registry knows.
    pub kind: String,
    /// Its table without input slots and what every stage may have; variables are filled in.
    pub params: Value,
    /// Input slot -> the stages that feed it.
    pub slots: BTreeMap<String, Vec<StageId>>,
    /// Tool name -> the implicit stage that fetches it.
    pub tools: BTreeMap<String, StageId>,
    /// What is written out: as `keep` says, else all of it if nothing consumes it. Never a tool.
    pub keep: Keep,
    /// How long one of its actions may take.
    pub timeout: Option<Duration>,
    /// How often an action that failed is tried again; zero for what does not reach outside.
    pub retries: u32,
    /// It is built only where it, or what needs it, is asked for.
    pub optional: bool,
    /// Where the plan names it, in the texts that it was read from: see [`SourceMap::place`].
    pub at: Range<usize>,
}

/// What of a stage's artifact is written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: `keep = false`, and what others consume.
    Nothing,
    /// Every part: `keep = true`, and what nothing consumes.
    All,
    /// These parts, and all parts in these folders: `keep = ["summary.txt", "tensors"]`.
    Parts(Vec<String>),
}

impl Keep {
    /// Whether the part called `name` is written out.
    pub fn takes(&self, name: &str) -> bool {
        let is_or_holds = |kept: &String| {
            name.strip_prefix(kept.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        match self {
            Keep::Nothing => false,
            Keep::All => true,
            Keep::Parts(parts) => parts.iter().any(is_or_holds),
        }
    }
}

impl PlannedStage {
    /// The stages it waits for.
    pub fn dependencies(&self) -> impl Iterator<Item = &StageId> {
        self.slots.values().flatten().chain(self.tools.values())
    }
}
