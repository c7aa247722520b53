//! Compares a lock with the current plan and build, stage by stage, and finds the cause of each
//! difference.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::build_record::{BuildRecord, StageRecord};
use super::outline::{Kept, Outline, StageOutline};
use crate::action::ActionKey;
use crate::base::Digest;

/// Maximum number of changes that are listed; the others are counted.
const MAX_LISTED: usize = 8;

/// A stage that differs from the lock.
#[derive(Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The stage, or `[plan]`.
    pub stage: String,
    /// Why it differs.
    pub cause: Cause,
    /// The changes, one line each.
    pub what: Vec<String>,
    /// The files that changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Changed>,
}

/// Why a stage differs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The plan changed.
    Plan,
    /// The version of its kind changed.
    Kiln,
    /// A file of a tool changed.
    Tool,
    /// An input changed: the output of a stage, or a file of this machine.
    Input,
    /// The action is the same, but its output is not.
    SameAction,
    /// It is not in the lock.
    New,
    /// It is only in the lock.
    Gone,
}

/// A file that was written out, with its digest in the lock and its current one.
#[derive(Debug, PartialEq, Serialize)]
pub struct Changed {
    /// Its path in the folder of artifacts.
    pub name: String,
    /// Its digest in the lock.
    pub locked: Option<Digest>,
    /// Its digest now.
    pub found: Option<Digest>,
}

/// The differences that are known before anything runs: those of the plan and of versions.
pub fn compare_plan(locked: &BuildRecord, outline: &Outline) -> Vec<Difference> {
    let mut differences = vec![];
    for (id, stage) in &outline.stages {
        let Some(record) = locked.stage.get(id.as_str()) else {
            if !stage.optional {
                let what = format!("{} is not in the lock", stage.kind);
                differences.push(Difference::new(id, Cause::New, vec![what]));
            }
            continue;
        };
        let changes = plan_changes(record, stage);
        if !changes.is_empty() {
            differences.push(Difference::new(id, Cause::Plan, changes));
        } else if record.version != stage.version {
            let (kind, old, new) = (&stage.kind, record.version, stage.version);
            let what = format!("version of {kind}: {old} -> {new}");
            differences.push(Difference::new(id, Cause::Kiln, vec![what]));
        }
    }
    let ids: BTreeSet<&str> = outline.stages.iter().map(|(id, _)| id.as_str()).collect();
    for (id, record) in &locked.stage {
        if !ids.contains(id.as_str()) {
            let what = format!("{} is not in the plan", record.kind);
            differences.push(Difference::new(id.as_str(), Cause::Gone, vec![what]));
        }
    }
    if differences.is_empty() && locked.digest != outline.digest {
        let (old, new) = (locked.plan.as_str(), outline.plan.as_str());
        let what = if old == new {
            let (old, new) = (locked.digest.short(), outline.digest.short());
            format!("digest: {old} -> {new}")
        } else {
            format!("name: {old} -> {new}")
        };
        differences.push(Difference::new("[plan]", Cause::Plan, vec![what]));
    }
    differences
}

/// The changes of the plan of a stage.
fn plan_changes(locked: &StageRecord, stage: &StageOutline) -> Vec<String> {
    let inputs_of = |producers: Option<&Vec<String>>| match producers {
        Some(producers) => producers.join(", "),
        None => "nothing".into(),
    };
    let mut values = vec![
        ("kind", locked.kind.clone(), stage.kind.clone()),
        ("params", locked.params.short(), stage.params.short()),
    ];
    let mut slots: BTreeSet<&String> = locked.inputs.keys().collect();
    slots.extend(stage.inputs.keys());
    for slot in slots {
        let (old, new) = (locked.inputs.get(slot), stage.inputs.get(slot));
        values.push((slot, inputs_of(old), inputs_of(new)));
    }
    values.push(("keep", locked.keep.to_string(), stage.keep.to_string()));
    let (old, new) = (locked.measured.to_string(), stage.measured.to_string());
    values.push(("measured", old, new));
    let mut changes = vec![];
    for (name, old, new) in values {
        if old != new {
            changes.push(format!("{name}: {old} -> {new}"));
        }
    }
    changes
}

/// The differences that are only known after a build. Stages that are not in `built` are skipped,
/// because it may be a build of a part of the plan. Changes of measured figures are not
/// differences, nor are changes that they cause, if the output is the same.
pub fn compare_build(
    locked: &BuildRecord,
    built: &BuildRecord,
    outline: &Outline,
) -> Vec<Difference> {
    let mut differences = vec![];
    for (id, _) in &outline.stages {
        if let (Some(old), Some(new)) =
            (locked.stage.get(id.as_str()), built.stage.get(id.as_str()))
        {
            differences.extend(compare_stage(id, old, new, locked, built));
        }
    }
    differences
}

fn compare_stage(
    id: &str,
    old: &StageRecord,
    new: &StageRecord,
    locked: &BuildRecord,
    built: &BuildRecord,
) -> Option<Difference> {
    let same_actions = old.actions == new.actions;
    let same_output = old.output == new.output;
    let artifacts = changed_artifacts(old, new);
    if same_actions && same_output && artifacts.is_empty() {
        return None;
    }
    let tools = changed_tools(locked, built, old, new);
    let (mut producers, mut measured_producers) = (vec![], vec![]);
    for producer in changed_producers(locked, built, new) {
        match built.stage.get(producer) {
            Some(record) if record.measured => measured_producers.push(producer),
            _ => producers.push(producer),
        }
    }
    if tools.is_empty() && producers.is_empty() {
        let is_measured = new.measured && (same_actions || !measured_producers.is_empty());
        let is_same = same_output && !measured_producers.is_empty();
        if is_measured || is_same {
            return None;
        }
    }
    producers.extend(measured_producers);
    let cause = if same_actions {
        Cause::SameAction
    } else if !tools.is_empty() {
        Cause::Tool
    } else if !producers.is_empty() {
        Cause::Input
    } else {
        // Or a file of this machine, which the record does not have.
        Cause::Kiln
    };
    let mut what = tools;
    if same_actions && same_output {
        what.push("the lock has other files".into());
    } else if same_actions {
        let (old, new) = (old.output.short(), new.output.short());
        what.push(format!("output: {old} -> {new}"));
    } else if !producers.is_empty() {
        what.push(format!("follows from {}", producers.join(", ")));
    }
    let mut difference = Difference::new(id, cause, what);
    difference.artifacts = artifacts;
    Some(difference)
}

/// The stages whose measured figures differ from the lock.
pub fn figures<'a>(locked: &BuildRecord, built: &'a BuildRecord) -> Vec<&'a str> {
    let mut ids = vec![];
    for (id, stage) in &built.stage {
        if stage.measured
            && let Some(old) = locked.stage.get(id.as_str())
            && old.output != stage.output
        {
            ids.push(id.as_str());
        }
    }
    ids
}

/// The files of the tools of a stage that changed, were added or removed. A build of a part of the
/// plan may use fewer files of a tool.
fn changed_tools(
    locked: &BuildRecord,
    built: &BuildRecord,
    old: &StageRecord,
    new: &StageRecord,
) -> Vec<String> {
    let mut changes = vec![];
    if old.actions == new.actions {
        return changes;
    }
    let is_whole_plan = built.stage.len() == locked.stage.len();
    let no_files = BTreeMap::new();
    for tool in old.tools.union(&new.tools) {
        let old_files = locked.tools.get(tool).unwrap_or(&no_files);
        let new_files = built.tools.get(tool).unwrap_or(&no_files);
        let mut files: BTreeSet<&String> = old_files.keys().collect();
        files.extend(new_files.keys());
        for file in files {
            let (old, new) = (old_files.get(file), new_files.get(file));
            if old != new && (is_whole_plan || new.is_some()) {
                changes.push(format!("{tool}/{file}: {} -> {}", short(old), short(new)));
            }
        }
    }
    few(changes)
}

/// The producers of a stage whose output changed, in the order of their names.
fn changed_producers<'a>(
    locked: &BuildRecord,
    built: &BuildRecord,
    stage: &'a StageRecord,
) -> Vec<&'a str> {
    let output = |record: &BuildRecord, id: &str| record.stage.get(id).map(|stage| stage.output);
    let mut changed = BTreeSet::new();
    for id in stage.inputs.values().flatten() {
        if output(locked, id) != output(built, id) {
            changed.insert(id.as_str());
        }
    }
    changed.into_iter().collect()
}

/// The files that both records have with different content. A build of a part of the plan may write
/// other files.
fn changed_artifacts(old: &StageRecord, new: &StageRecord) -> Vec<Changed> {
    let mut changed = vec![];
    for (name, old) in &old.artifacts {
        if let Some(new) = new.artifacts.get(name)
            && old != new
        {
            changed.push(Changed {
                name: name.to_string(),
                locked: Some(old.blake3),
                found: Some(new.blake3),
            });
        }
    }
    changed
}

/// The parts whose action changed: name, old and new key. `new` returns the new key of a part.
pub fn other_parts(
    old: &StageRecord,
    new: impl Fn(&str) -> Option<ActionKey>,
) -> Vec<(&str, ActionKey, ActionKey)> {
    let mut changed = vec![];
    for (part, old_key) in &old.actions {
        if let Some(new_key) = new(part)
            && new_key != *old_key
        {
            changed.push((part.as_str(), *old_key, new_key));
        }
    }
    changed
}

/// The first few lines and the number of others.
pub fn few(mut lines: Vec<String>) -> Vec<String> {
    if lines.len() > MAX_LISTED {
        let more = lines.len() - MAX_LISTED;
        lines.truncate(MAX_LISTED);
        lines.push(format!("and {more} more"));
    }
    lines
}

fn short(digest: Option<&Digest>) -> String {
    match digest {
        Some(digest) => digest.short(),
        None => "nothing".into(),
    }
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

    /// Its changes and files, one line each.
    pub fn lines(&self) -> Vec<String> {
        let mut files = vec![];
        for artifact in &self.artifacts {
            let locked = short(artifact.locked.as_ref());
            let found = short(artifact.found.as_ref());
            files.push(format!("{}: {locked} -> {found}", artifact.name));
        }
        let mut lines = self.what.clone();
        lines.extend(few(files));
        lines
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
