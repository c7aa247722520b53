//! Reads the text of a plan into a checked [`Plan`], or reports all its problems. Pure: it opens no
//! file.

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

/// Number of problems that are reported one by one. The others are only counted.
const MAX_PROBLEMS: usize = 100;

/// Reads a plan from its texts. `sets` are the values of `--set`, `registry` has the stage kinds.
///
/// The error has all problems in the order of the text. If a file is missing or is not valid TOML,
/// only the problems of that kind are reported.
pub fn read(
    map: &SourceMap,
    sets: &[(String, String)],
    registry: &Registry,
) -> Result<Plan, Vec<Problem>> {
    let mut problems = map.problems().to_vec();
    if problems.is_empty() {
        let plan = check(map, sets, registry, &mut problems);
        if problems.is_empty() {
            return Ok(plan);
        }
    }
    problems.sort_by_key(|problem| place(problem).unwrap_or_default().start);
    // The instances of a stage have the same problems.
    let mut reported = BTreeSet::new();
    problems.retain(|problem| reported.insert(format!("{problem:?}")));
    if problems.len() > MAX_PROBLEMS {
        let more = problems.split_off(MAX_PROBLEMS).len();
        let message = format!("and {more} more mistakes");
        problems.push(Problem::new(Code::PlanMore, message).help("correct these first"));
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
    let mut unfilled = vec![];
    for problem in problems.iter() {
        if is_unfilled(problem)
            && let Some(span) = place(problem)
        {
            unfilled.push(span);
        }
    }
    let checked = check::check(&draft, registry, problems);
    let stages = order::in_order(checked, problems);
    // A value with an unknown variable in it is reported once, for the variable.
    problems.retain(|problem| is_unfilled(problem) || !contains_any(problem, &unfilled));
    Plan {
        name: draft.name,
        stages,
        texts: vec![],
    }
}

/// Where the plan has the problem: its first label.
fn place(problem: &Problem) -> Option<Range<usize>> {
    let (span, _) = problem.labels.first()?;
    Some(span.clone())
}

/// Whether one of `spans` is inside the place of the problem.
fn contains_any(problem: &Problem, spans: &[Range<usize>]) -> bool {
    let Some(at) = place(problem) else {
        return false;
    };
    for span in spans {
        if at.start <= span.start && span.end <= at.end {
            return true;
        }
    }
    false
}

/// Whether it reports a `${...}` that has no value.
fn is_unfilled(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::PlanUnknownVariable | Code::PlanVariable | Code::PlanAxis
    )
}

/// The id of a stage: `weights`; `npu.sm8650` for an instance of `npu`; `tools.qnn` for the
/// implicit stage of a tool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct StageId(pub String);

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checked plan: its stage kinds, parameters, inputs and tools are valid, and it has no cycle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// `[plan] name`.
    pub name: String,
    /// The stages in topological order; otherwise in the order of the text.
    pub stages: Vec<PlannedStage>,
    /// The files that the plan was read from.
    pub texts: Vec<PathBuf>,
}

/// One stage of a checked plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedStage {
    /// Its id.
    pub id: StageId,
    /// Its name in the plan; the same for all instances.
    pub name: String,
    /// Its kind, which is in the registry.
    pub kind: String,
    /// Its parameters: the table without input slots and common keys, with variables filled in.
    pub params: Value,
    /// Input slot -> the stages whose output it reads.
    pub slots: BTreeMap<String, Vec<StageId>>,
    /// Tool name -> the implicit stage that fetches it.
    pub tools: BTreeMap<String, StageId>,
    /// What is written out: the value of `keep`, or everything if no stage consumes the output.
    /// Tools are never written out.
    pub keep: Keep,
    /// How long one of its actions may take.
    pub timeout: Option<Duration>,
    /// How often a failed action is run again; 0 for kinds that do not reach outside.
    pub retries: u32,
    /// Whether it is built only if the call names it or a stage that depends on it.
    pub optional: bool,
    /// Where the plan names it: a range for [`SourceMap::place`].
    pub at: Range<usize>,
}

/// Which parts of a stage are written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: `keep = false`, and the default if another stage consumes the output.
    Nothing,
    /// Every part: `keep = true`, and the default if no other stage consumes the output.
    All,
    /// These parts, and all parts in these folders: `keep = ["summary.txt", "tensors"]`.
    Parts(Vec<String>),
}

impl Keep {
    /// Whether the part called `name` is written out.
    pub fn takes(&self, name: &str) -> bool {
        let parts = match self {
            Keep::Nothing => return false,
            Keep::All => return true,
            Keep::Parts(parts) => parts,
        };
        for part in parts {
            if let Some(rest) = name.strip_prefix(part.as_str())
                && (rest.is_empty() || rest.starts_with('/'))
            {
                return true;
            }
        }
        false
    }
}

impl PlannedStage {
    /// The stages that it depends on.
    pub fn dependencies(&self) -> impl Iterator<Item = &StageId> {
        self.slots.values().flatten().chain(self.tools.values())
    }
}
