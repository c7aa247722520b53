//! What differs between a lock and today, stage by stage, the cause told apart from what follows
//! from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::build_record::{Artifact, BuildRecord, StageRecord};
use super::name::Name;
use super::outline::{Asked, Kept, Outline};
use crate::action::{ActionKey, PartName};
use crate::base::Digest;

/// So many changes are named; the rest is counted.
const FEW: usize = 8;

/// A stage that is not as it was locked.
#[derive(Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The stage, or `[plan]`.
    pub stage: String,
    /// Why it differs.
    pub cause: Cause,
    /// What exactly, a line each.
    pub what: Vec<String>,
    /// The written files that are others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Changed>,
}

/// Why a stage differs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The plan says something else of it.
    Plan,
    /// The code of its kind is another one.
    Kiln,
    /// A file of a tool is another one.
    Tool,
    /// What it takes from is: a stage, or a file of this machine.
    Input,
    /// Nothing that it is made of: it does not give the same bytes twice.
    SameAction,
    /// It is not in the lock.
    New,
    /// It is only in the lock.
    Gone,
}

/// A written file, as locked and as found.
#[derive(Debug, PartialEq, Serialize)]
pub struct Changed {
    /// Its path in the folder of artifacts.
    pub name: String,
    /// Its digest in the lock.
    pub locked: Option<Digest>,
    /// Its digest now.
    pub found: Option<Digest>,
}

/// What can be said before anything runs: what the plan and this kiln say of each stage.
pub fn asked(locked: &BuildRecord, outline: &Outline) -> Vec<Difference> {
    let mut differs = vec![];
    for (id, asked) in &outline.stages {
        let (cause, what) = match locked.stage.get(id.as_str()) {
            None if asked.optional => continue,
            None => (
                Cause::New,
                vec![format!("{} is not in the lock", asked.kind)],
            ),
            Some(made) => match said(made, asked) {
                what if !what.is_empty() => (Cause::Plan, what),
                _ if made.version != asked.version => {
                    let change = format!(
                        "version of {}: {} -> {}",
                        asked.kind, made.version, asked.version
                    );
                    (Cause::Kiln, vec![change])
                }
                _ => continue,
            },
        };
        differs.push(Difference::new(id, cause, what));
    }
    let gone = locked
        .stage
        .iter()
        .filter(|(id, _)| !outline.stages.iter().any(|(known, _)| known == id.as_str()));
    differs.extend(gone.map(|(id, made)| {
        Difference::new(
            id.as_str(),
            Cause::Gone,
            vec![format!("{} is not in the plan", made.kind)],
        )
    }));
    if differs.is_empty() && locked.digest != outline.digest {
        let (old, new) = (locked.plan.as_str(), outline.plan.as_str());
        let what = match old == new {
            true => format!(
                "digest: {} -> {}",
                locked.digest.short(),
                outline.digest.short()
            ),
            false => format!("name: {old} -> {new}"),
        };
        differs.push(Difference::new("[plan]", Cause::Plan, vec![what]));
    }
    differs
}

/// What the plan says of a stage that it did not say.
fn said(made: &StageRecord, asked: &Asked) -> Vec<String> {
    let mut what = vec![];
    let mut compare = |name: &str, old: String, new: String| {
        if old != new {
            what.push(format!("{name}: {old} -> {new}"));
        }
    };
    compare("kind", made.kind.clone(), asked.kind.clone());
    compare("params", made.params.short(), asked.params.short());
    let slots: BTreeSet<&String> = made.inputs.keys().chain(asked.inputs.keys()).collect();
    for slot in slots {
        let named = |producers: Option<&Vec<String>>| {
            producers.map_or("nothing".into(), |producers| producers.join(", "))
        };
        compare(
            slot,
            named(made.inputs.get(slot)),
            named(asked.inputs.get(slot)),
        );
    }
    compare("keep", made.keep.to_string(), asked.keep.to_string());
    compare(
        "measured",
        made.measured.to_string(),
        asked.measured.to_string(),
    );
    what
}

/// What only a build can say. Stages that `built` has not are left out: it may be of a part of the
/// plan. So are those whose figures alone are others, and what was made from such figures if it
/// came out the same.
pub fn made(locked: &BuildRecord, built: &BuildRecord, outline: &Outline) -> Vec<Difference> {
    let of_stage = |(id, _): &(String, Asked)| {
        let (old, new) = (
            locked.stage.get(id.as_str())?,
            built.stage.get(id.as_str())?,
        );
        let artifacts = artifacts(old, new);
        if old.actions == new.actions && old.output == new.output && artifacts.is_empty() {
            return None;
        }
        let tools = tools(locked, built, old, new);
        let (from_figures, follows): (Vec<_>, Vec<_>) = follows(locked, built, new)
            .into_iter()
            .partition(|producer| {
                built
                    .stage
                    .get(*producer)
                    .is_some_and(|producer| producer.measured)
            });
        let are_figures = new.measured && (old.actions == new.actions || !from_figures.is_empty());
        let is_the_same = old.output == new.output && !from_figures.is_empty();
        if tools.is_empty() && follows.is_empty() && (are_figures || is_the_same) {
            return None;
        }
        let follows = [follows, from_figures].concat();
        let cause = match () {
            () if old.actions == new.actions => Cause::SameAction,
            () if !tools.is_empty() => Cause::Tool,
            () if !follows.is_empty() => Cause::Input,
            // Files of this machine are not known here.
            () => Cause::Kiln,
        };
        let mut differs = Difference::new(id, cause, tools);
        if cause == Cause::SameAction && old.output == new.output {
            differs
                .what
                .push("the lock says something else of what is written out".into());
        } else if cause == Cause::SameAction {
            differs.what.push(format!(
                "output: {} -> {}",
                old.output.short(),
                new.output.short()
            ));
        } else if !follows.is_empty() {
            differs
                .what
                .push(format!("follows from {}", follows.join(", ")));
        }
        differs.artifacts = artifacts;
        Some(differs)
    };
    outline.stages.iter().filter_map(of_stage).collect()
}

/// The stages whose figures are others than locked.
pub fn figures<'a>(locked: &BuildRecord, built: &'a BuildRecord) -> Vec<&'a str> {
    let is_other = |(id, made): &(&Name, &StageRecord)| {
        made.measured
            && locked
                .stage
                .get(id.as_str())
                .is_some_and(|locked| locked.output != made.output)
    };
    built
        .stage
        .iter()
        .filter(is_other)
        .map(|(id, _)| id.as_str())
        .collect()
}

/// The files of its tools that are others, came or went. A build of a part of the plan uses fewer
/// files of a tool.
fn tools(
    locked: &BuildRecord,
    built: &BuildRecord,
    old: &StageRecord,
    new: &StageRecord,
) -> Vec<String> {
    let mut changes = vec![];
    if old.actions == new.actions {
        return changes;
    }
    let is_whole = built.stage.len() == locked.stage.len();
    for tool in old.tools.union(&new.tools) {
        let (old, new) = (locked.tools.get(tool), built.tools.get(tool));
        let files: BTreeSet<&String> = [old, new]
            .into_iter()
            .flatten()
            .flat_map(|files| files.keys())
            .collect();
        for file in files {
            let of = |tool: Option<&BTreeMap<String, Digest>>| tool?.get(file).copied();
            if of(old) != of(new) && (is_whole || of(new).is_some()) {
                changes.push(format!(
                    "{tool}/{file}: {} -> {}",
                    short(of(old)),
                    short(of(new))
                ));
            }
        }
    }
    few(changes)
}

/// The stages it takes from that give something else.
fn follows<'a>(locked: &BuildRecord, built: &BuildRecord, new: &'a StageRecord) -> Vec<&'a str> {
    let output = |record: &BuildRecord, id: &str| record.stage.get(id).map(|made| made.output);
    let differs = |id: &&str| output(locked, id) != output(built, id);
    let producers: BTreeSet<&str> = new.inputs.values().flatten().map(String::as_str).collect();
    producers.into_iter().filter(differs).collect()
}

/// Those of the written files that are others. What is written now may be less or more, if the
/// build is of a part.
fn artifacts(old: &StageRecord, new: &StageRecord) -> Vec<Changed> {
    let both = old
        .artifacts
        .iter()
        .filter_map(|(name, was)| Some((name, was, new.artifacts.get(name)?)));
    let other = both.filter(|(_, was, is)| was != is);
    let changed = |(name, was, is): (&PartName, &Artifact, &Artifact)| Changed {
        name: name.to_string(),
        locked: Some(was.blake3),
        found: Some(is.blake3),
    };
    other.map(changed).collect()
}

/// Parts whose action is another one: name, locked and today's.
pub fn other_parts(
    old: &StageRecord,
    new: impl Fn(&str) -> Option<ActionKey>,
) -> impl Iterator<Item = (&str, ActionKey, ActionKey)> {
    old.actions.iter().filter_map(move |(part, was)| {
        let is = new(part)?;
        (is != *was).then_some((part.as_str(), *was, is))
    })
}

/// The first few lines, and how many more there are.
pub fn few(mut lines: Vec<String>) -> Vec<String> {
    if lines.len() > FEW {
        let more = lines.len() - FEW;
        lines.truncate(FEW);
        lines.push(format!("and {more} more"));
    }
    lines
}

fn short(digest: Option<Digest>) -> String {
    digest.map_or("nothing".into(), |digest| digest.short())
}

impl Difference {
    fn new(stage: &str, cause: Cause, what: Vec<String>) -> Self {
        Difference {
            stage: stage.into(),
            cause,
            what,
            artifacts: vec![],
        }
    }

    /// What is said of it, a line each.
    pub fn lines(&self) -> Vec<String> {
        let artifact =
            |Changed {
                 name,
                 locked,
                 found,
             }: &Changed| format!("{name}: {} -> {}", short(*locked), short(*found));
        let artifacts = few(self.artifacts.iter().map(artifact).collect());
        self.what.iter().cloned().chain(artifacts).collect()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Plan => "plan",
            Cause::Kiln => "kiln",
            Cause::Tool => "tool",
            Cause::Input => "input",
            Cause::SameAction => "same action, other bytes",
            Cause::New => "new",
            Cause::Gone => "gone",
        })
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kept::All(all) => all.fmt(f),
            Kept::Parts(parts) => write!(f, "{parts:?}"),
        }
    }
}
