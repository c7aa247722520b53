//! `--locked`: a build that must come to what the lock beside the plan says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::session::Session;
use super::super::{Common, Failed};
use super::columns::columns;
use super::verify;
use crate::action::ActionKey;
use crate::base::{Code, Problem, Result, count};
use crate::engine::differences;
use crate::events::Why;
use crate::plan::{PlannedStage, StageId};
use crate::records::compare::{self, Cause, Difference, few};
use crate::records::{BuildRecord, StageRecord, lock};
use crate::store::ActionCache;

/// A lock that a build is held against.
pub(in crate::cli) struct Locked<'a> {
    path: PathBuf,
    record: BuildRecord,
    common: &'a Common,
}

/// The canonical text of an action, by its key.
type Texts<'a> = &'a dyn Fn(&ActionKey) -> Result<Option<String>>;

impl<'a> Locked<'a> {
    /// Reads the lock at `path`.
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

    /// Holds what the plan and this kiln say against it, before anything runs.
    pub(super) fn hold_outline(&self, session: &Session) -> Result<(), Failed> {
        let mut differs = compare::compare_plan(&self.record, &session.outline);
        if differs
            .iter()
            .any(|difference| self.made(difference).is_some())
        {
            // Runs nothing, but finds what the actions would be. Where it cannot, the digests must
            // do.
            let built = session.dry_run().unwrap_or_default();
            let parts = built.parts.iter();
            let now: BTreeMap<(&str, &str), ActionKey> = parts
                .clone()
                .map(|part| {
                    (
                        (part.id.stage.as_str(), part.id.part.as_str()),
                        part.task.key,
                    )
                })
                .collect();
            let texts: BTreeMap<ActionKey, String> = parts
                .map(|part| (part.task.key, part.task.action.canonical_text()))
                .collect();
            for difference in &mut differs {
                let Some(made) = self.made(difference) else {
                    continue;
                };
                let key = |part: &str| now.get(&(difference.stage.as_str(), part)).copied();
                let fields =
                    fields(session, made, key, &|key| Ok(texts.get(key).cloned()))?.lines(is_said);
                if !fields.is_empty() {
                    // They say what the digest only hints at.
                    difference.what.retain(|line| !line.starts_with("params: "));
                    difference.what.extend(fields);
                }
            }
        }
        if differs.is_empty() {
            Ok(())
        } else {
            self.judge(&differs, &[])
        }
    }

    /// Holds what was built against it.
    pub(super) fn hold(&self, built: &BuildRecord, session: &Session) -> Result<(), Failed> {
        let mut differs = compare::compare_build(&self.record, built, &session.outline);
        for difference in &mut differs {
            let id = difference.stage.as_str();
            let (Some(old), Some(new)) = (self.record.stage.get(id), built.stage.get(id)) else {
                continue;
            };
            if difference.cause != Cause::Kiln {
                continue;
            }
            let files = files(session, id)?;
            if !files.is_empty() {
                difference.cause = Cause::Input;
                difference
                    .what
                    .push(format!("a file of this machine: {}", files.join(", ")));
            }
            let text = |key: &ActionKey| Ok(session.store.get(key)?.map(|result| result.action));
            let fields = fields(session, old, |part| new.actions.get(part).copied(), &text)?;
            difference.what.extend(fields.lines(|_| true));
            difference.what.extend(other_names(old, new));
        }
        self.judge(&differs, &compare::figures(&self.record, built))
    }

    /// Holds what lies in `out` of `stages` against it, byte by byte; figures against what was
    /// `built`.
    pub(super) fn hold_written(
        &self,
        built: &BuildRecord,
        out: &Path,
        stages: &[&str],
    ) -> Result<(), Failed> {
        let mut files = self.record.files();
        // What is a figure is for the plan to say, not for a lock.
        files.extend(built.files_of(|made| made.measured));
        verify::hold(&self.record, &files, &self.path, out, stages, self.common)
    }

    /// What is locked of a stage of which the plan says something else.
    fn made(&self, difference: &Difference) -> Option<&StageRecord> {
        self.record
            .stage
            .get(difference.stage.as_str())
            .filter(|_| difference.cause == Cause::Plan)
    }

    /// Says what differs, and that this is a problem; and which stages measured other `figures`,
    /// which is none.
    fn judge(&self, differs: &[Difference], figures: &[&str]) -> Result<(), Failed> {
        let Common { json, .. } = self.common;
        if *json {
            let line = json!({"locked": self.path, "differs": differs, "figures": figures});
            self.common.print(&format!("{line}\n"));
        }
        if differs.is_empty() {
            if !json && !figures.is_empty() {
                let figures = figures.join(", ");
                self.common.print(&format!(
                    "measured here, with other figures than locked: {figures}\n"
                ));
            }
            return Ok(());
        }
        if !json {
            self.common.print(&table(differs));
        }
        let message = format!(
            "{} not as {} says; nothing was written",
            stages_are(differs.len()),
            self.path.display()
        );
        Err(Problem::new(Code::LockDiffers, message)
            .help(
                "if this is meant: kiln build PLAN.toml --lock, and review what changes in the \
                 lock",
            )
            .into())
    }
}

/// The very fields in which today's actions are others, by the first part whose locked action the
/// cache still has.
fn fields(
    session: &Session,
    old: &StageRecord,
    new: impl Fn(&str) -> Option<ActionKey>,
    texts: Texts,
) -> Result<Fields> {
    for (part, was, is) in compare::other_parts(old, new) {
        let Some(before) = session.store.get(&was)? else {
            continue;
        };
        let read = |text: &str| serde_json::from_str::<Value>(text).ok();
        let (Some(before), Some(now)) =
            (read(&before.action), texts(&is)?.as_deref().and_then(read))
        else {
            continue;
        };
        return Ok(Fields {
            part: part.into(),
            differ: differences(&before, &now),
        });
    }
    Ok(Fields::default())
}

/// What differs between two actions of one part.
#[derive(Default)]
struct Fields {
    part: String,
    differ: Vec<Why>,
}

impl Fields {
    fn lines(&self, is_asked_for: fn(&Why) -> bool) -> Vec<String> {
        let part = if self.part.is_empty() {
            String::new()
        } else {
            format!("{}: ", self.part)
        };
        few(self
            .differ
            .iter()
            .filter(|why| is_asked_for(why))
            .map(|why| format!("{part}{why}"))
            .collect())
    }
}

/// Whether it is the plan that says so, and not what the stage takes from.
fn is_said(why: &Why) -> bool {
    matches!(
        why,
        Why::Kind { .. } | Why::StageVersion { .. } | Why::Param { .. }
    )
}

/// The files of this machine that a stage reads.
fn files(session: &Session, id: &str) -> Result<Vec<String>> {
    let planned = |stage: &&PlannedStage| stage.id == StageId(id.into());
    let Some(stage) = session.plan.stages.iter().find(planned) else {
        return Ok(vec![]);
    };
    let Some(kind) = session.stages.get(&stage.kind) else {
        return Ok(vec![]);
    };
    Ok(few(kind
        .files(&stage.params)?
        .iter()
        .map(|path| path.display().to_string())
        .collect()))
}

fn stages_are(number: usize) -> String {
    format!(
        "{} {}",
        count(number, "stage"),
        if number == 1 { "is" } else { "are" }
    )
}

/// Parts that came or went.
fn other_names(old: &StageRecord, new: &StageRecord) -> Option<String> {
    let came = new
        .actions
        .keys()
        .filter(|part| !old.actions.contains_key(*part))
        .count();
    let went = old
        .actions
        .keys()
        .filter(|part| !new.actions.contains_key(*part))
        .count();
    (came + went > 0).then(|| format!("{} came, {went} went", count(came, "part")))
}

fn table(differs: &[Difference]) -> String {
    let mut rows = vec![["stage", "cause", "what"].map(String::from)];
    for difference in differs {
        let mut lines = difference.lines().into_iter();
        rows.push([
            difference.stage.clone(),
            difference.cause.to_string(),
            lines.next().unwrap_or_default(),
        ]);
        rows.extend(lines.map(|line| [String::new(), String::new(), line]));
    }
    columns(&rows)
}
