//! `--locked`: a build whose result must be that of the lock file beside the plan.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::columns::columns;
use super::super::session::Session;
use super::super::{Common, Failed};
use super::verify;
use crate::action::ActionKey;
use crate::base::{Code, Problem, Result, count};
use crate::engine;
use crate::events::Why;
use crate::records::compare::{self, Cause, Difference, few};
use crate::records::{BuildRecord, StageRecord, lock};
use crate::store::ActionCache;

/// A lock file that a build is compared with.
pub(in crate::cli) struct Locked<'a> {
    path: PathBuf,
    record: BuildRecord,
    common: &'a Common,
}

impl<'a> Locked<'a> {
    /// Reads the lock file at `path`.
    pub(super) fn read(path: PathBuf, common: &'a Common) -> Result<Self> {
        if !path.exists() {
            return Err(lock::none_at(&path));
        }
        Ok(Locked {
            record: BuildRecord::read_lock(&path)?,
            path,
            common,
        })
    }

    /// Compares the plan and this version of kiln with the lock, before anything runs.
    pub(super) fn compare_outline(&self, session: &Session) -> Result<(), Failed> {
        let mut differences = compare::compare_plan(&self.record, &session.outline);
        if differences
            .iter()
            .any(|difference| self.locked_stage(difference).is_some())
        {
            self.add_changed_fields(&mut differences, session)?;
        }
        if differences.is_empty() {
            return Ok(());
        }
        self.report(&differences, &[])
    }

    /// Adds the fields of the actions in which stages of the plan differ from the lock.
    fn add_changed_fields(&self, differences: &mut [Difference], session: &Session) -> Result<()> {
        // Finds the actions of today without running them. If that fails, the digests of the
        // parameters have to be enough.
        let built = session.dry_run().unwrap_or_default();
        let mut keys: BTreeMap<(&str, &str), ActionKey> = BTreeMap::new();
        let mut texts: BTreeMap<ActionKey, String> = BTreeMap::new();
        for part in &built.parts {
            let key = part.task.key;
            keys.insert((&part.id.stage, &part.id.part), key);
            texts.insert(key, part.task.action.canonical_text());
        }
        for difference in differences {
            let Some(locked) = self.locked_stage(difference) else {
                continue;
            };
            let changed = changed_fields(
                session,
                locked,
                |part| keys.get(&(difference.stage.as_str(), part)).copied(),
                |key| Ok(texts.get(key).cloned()),
            )?;
            let lines = changed.lines(is_of_plan);
            if !lines.is_empty() {
                // These lines are more exact than the digest of the parameters.
                difference.what.retain(|line| !line.starts_with("params: "));
                difference.what.extend(lines);
            }
        }
        Ok(())
    }

    /// Compares the results of the build with the lock.
    pub(super) fn compare_build(
        &self,
        built: &BuildRecord,
        session: &Session,
    ) -> Result<(), Failed> {
        let mut differences = compare::compare_build(&self.record, built, &session.outline);
        for difference in &mut differences {
            let id = difference.stage.as_str();
            let (Some(old), Some(new)) = (self.record.stage.get(id), built.stage.get(id)) else {
                continue;
            };
            if difference.cause != Cause::Kiln {
                continue;
            }
            let files = local_files(session, id)?;
            if !files.is_empty() {
                difference.cause = Cause::Input;
                difference
                    .what
                    .push(format!("a local file: {}", files.join(", ")));
            }
            let changed = changed_fields(
                session,
                old,
                |part| new.actions.get(part).copied(),
                |key| match session.store.get(key)? {
                    Some(result) => Ok(Some(result.action)),
                    None => Ok(None),
                },
            )?;
            difference.what.extend(changed.lines(|_| true));
            difference.what.extend(changed_part_names(old, new));
        }
        self.report(&differences, &compare::figures(&self.record, built))
    }

    /// Compares the files of `stages` in `out` with the lock. Measured files are compared with
    /// what was `built`.
    pub(super) fn compare_files(
        &self,
        built: &BuildRecord,
        out: &Path,
        stages: &[&str],
    ) -> Result<(), Failed> {
        let mut files = self.record.files();
        // The plan, not the lock, says which stages measure.
        files.extend(built.files_of(|made| made.measured));
        verify::check_written(&self.record, &files, &self.path, out, stages, self.common)
    }

    /// The locked stage, if the plan is the cause of the difference.
    fn locked_stage(&self, difference: &Difference) -> Option<&StageRecord> {
        if difference.cause != Cause::Plan {
            return None;
        }
        self.record.stage.get(difference.stage.as_str())
    }

    /// Prints the differences and fails if there are any. Also prints which stages have other
    /// measured values (`figures`), which is no failure.
    fn report(&self, differences: &[Difference], figures: &[&str]) -> Result<(), Failed> {
        let Common { json, .. } = self.common;
        if *json {
            let line = json!({"locked": self.path, "differs": differences, "figures": figures});
            self.common.print(&format!("{line}\n"));
        } else if !differences.is_empty() {
            self.common.print(&difference_table(differences));
        } else if !figures.is_empty() {
            let stages = figures.join(", ");
            self.common.print(&format!(
                "measured values differ from the lock file: {stages}\n"
            ));
        }
        if differences.is_empty() {
            return Ok(());
        }
        let message = format!(
            "{} {} from {}; no artifacts were written",
            count(differences.len(), "stage"),
            verify::differ_verb(differences.len()),
            self.path.display()
        );
        let help = "if this is intended, run `kiln build PLAN.toml --lock` and review the new lock \
                    file";
        Err(Problem::new(Code::LockDiffers, message).help(help).into())
    }
}

/// The differences between two actions of one part.
#[derive(Default)]
struct ChangedFields {
    part: String,
    differences: Vec<Why>,
}

impl ChangedFields {
    /// The differences that `filter` accepts, one per line.
    fn lines(&self, filter: fn(&Why) -> bool) -> Vec<String> {
        let mut lines = vec![];
        for why in &self.differences {
            if !filter(why) {
                continue;
            }
            lines.push(match self.part.as_str() {
                "" => why.to_string(),
                part => format!("{part}: {why}"),
            });
        }
        few(lines)
    }
}

/// The differences between a locked action and an action of this build, for the first part whose
/// actions differ and whose locked action the cache still has. `new_key` has the key of each part
/// now, `new_action` the canonical text of its action.
fn changed_fields(
    session: &Session,
    old: &StageRecord,
    new_key: impl Fn(&str) -> Option<ActionKey>,
    new_action: impl Fn(&ActionKey) -> Result<Option<String>>,
) -> Result<ChangedFields> {
    for (part, old_key, new_key) in compare::other_parts(old, new_key) {
        let Some(locked) = session.store.get(&old_key)? else {
            continue;
        };
        let Some(new_text) = new_action(&new_key)? else {
            continue;
        };
        let old_action: Result<Value, _> = serde_json::from_str(&locked.action);
        let new_action: Result<Value, _> = serde_json::from_str(&new_text);
        if let (Ok(old_action), Ok(new_action)) = (old_action, new_action) {
            return Ok(ChangedFields {
                part: part.into(),
                differences: engine::differences(&old_action, &new_action),
            });
        }
    }
    Ok(ChangedFields::default())
}

/// Whether a difference comes from the plan itself, not from the inputs of the stage.
fn is_of_plan(why: &Why) -> bool {
    matches!(
        why,
        Why::Kind { .. } | Why::StageVersion { .. } | Why::Param { .. }
    )
}

/// The local files that a stage reads.
fn local_files(session: &Session, id: &str) -> Result<Vec<String>> {
    let Some(stage) = session.stage(id) else {
        return Ok(vec![]);
    };
    let Some(kind) = session.stages.get(&stage.kind) else {
        return Ok(vec![]);
    };
    let mut paths = vec![];
    for path in kind.files(&stage.params)? {
        paths.push(path.display().to_string());
    }
    Ok(few(paths))
}

/// How many parts of a stage are new and how many are gone, if any.
fn changed_part_names(old: &StageRecord, new: &StageRecord) -> Option<String> {
    let added = count_missing(new, old);
    let removed = count_missing(old, new);
    if added + removed == 0 {
        return None;
    }
    Some(format!("{} added, {removed} removed", count(added, "part")))
}

/// How many parts of `stage` the stage `other` does not have.
fn count_missing(stage: &StageRecord, other: &StageRecord) -> usize {
    let mut missing = 0;
    for part in stage.actions.keys() {
        missing += usize::from(!other.actions.contains_key(part));
    }
    missing
}

fn difference_table(differences: &[Difference]) -> String {
    let mut rows = vec![["stage", "cause", "what"].map(String::from)];
    for difference in differences {
        let mut lines = difference.lines().into_iter();
        rows.push([
            difference.stage.clone(),
            difference.cause.to_string(),
            lines.next().unwrap_or_default(),
        ]);
        for line in lines {
            rows.push([String::new(), String::new(), line]);
        }
    }
    columns(&rows)
}
