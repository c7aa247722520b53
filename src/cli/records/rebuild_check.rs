//! `--check`: runs parts of a finished build a second time, with the same scheduler, and compares
//! the bytes of their outputs.
//!
//! Two wrappers do this. A cache that hides the results of these parts makes them run; an executor
//! returns the outputs of the first run in place of the new ones, so that all later parts get the
//! same inputs as before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::json;

use super::super::columns::columns;
use super::super::output_paths::OutputPaths;
use super::super::screen::{Screen, ViewArgs};
use super::super::{Common, Failed};
use super::Records;
use crate::action::{Action, ActionKey, Demand, Manifest, Outputs, PartName, Stage};
use crate::base::{Code, Digest, Problem, Result, count};
use crate::engine::Limits;
use crate::events::{Event, Failure, Failures, Listener, PartId, Why};
use crate::execute::{Executor, RunOutput, Watch};
use crate::plan::PlannedStage;
use crate::store::{ActionCache, ActionResult, CompleteCache, Disk, Links, publish};

/// The actions to check, with the part that each is reported as.
type CheckedActions = BTreeMap<ActionKey, PartId>;

/// Hides the results of the checked actions, and stores nothing.
struct HidingCache<'a> {
    inner: &'a Disk,
    checked: &'a CheckedActions,
}

impl ActionCache for HidingCache<'_> {
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>> {
        if self.checked.contains_key(key) {
            Ok(None)
        } else {
            self.inner.get(key)
        }
    }

    fn put(&self, _: &ActionResult) -> Result<()> {
        Ok(())
    }
}

/// Runs checked actions, compares their outputs with those of the first run, and returns the
/// outputs of the first run. Does not run other actions that have a result, such as those that run
/// in every build.
struct ComparingExecutor<'a> {
    inner: &'a dyn Executor,
    first_results: &'a Disk,
    checked: &'a CheckedActions,
    ran: AtomicUsize,
    mismatches: Mutex<Vec<Mismatch>>,
}

/// The outputs of an action that differ between its two runs.
struct Mismatch {
    key: ActionKey,
    first: Outputs,
    second: Outputs,
}

impl Executor for ComparingExecutor<'_> {
    fn run(&self, action: &Action, demand: &Demand, watch: &dyn Watch) -> Result<RunOutput> {
        let key = action.key();
        if !self.checked.contains_key(&key) {
            let complete = CompleteCache {
                actions: self.first_results,
                blobs: self.first_results,
            };
            if let Some(result) = complete.get(&key)? {
                return Ok(RunOutput {
                    outputs: result.outputs,
                    peak_memory_bytes: result.peak_memory_bytes,
                });
            }
        }
        let ran = self.inner.run(action, demand, watch)?;
        let Some(first_result) = self.first_results.get(&key)? else {
            return Ok(ran);
        };
        self.ran.fetch_add(1, Ordering::Relaxed);
        let first = differing_outputs(&first_result.outputs, &ran.outputs);
        let second = differing_outputs(&ran.outputs, &first_result.outputs);
        if !first.is_empty() || !second.is_empty() {
            let mut mismatches = self
                .mismatches
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            mismatches.push(Mismatch { key, first, second });
        }
        Ok(RunOutput {
            outputs: first_result.outputs,
            ..ran
        })
    }
}

/// Those of `outputs` that `others` does not have with the same bytes and facts. Where the bytes
/// are in a blob does not matter.
fn differing_outputs(outputs: &Outputs, others: &Outputs) -> Outputs {
    let mut differing = Outputs::default();
    for (name, part) in outputs {
        if let Some(other) = others.get(name)
            && part.content.digest == other.content.digest
            && part.facts == other.facts
        {
            continue;
        }
        differing.insert(name.clone(), part.clone());
    }
    differing
}

/// Runs the parts of the stages `selected` a second time; without a selection, those of all stages
/// that should be reproducible.
pub(super) fn check(
    records: &Records,
    selected: &[String],
    limits: Limits,
    cancel: &AtomicBool,
    out: &Path,
    common: &Common,
) -> Result<(), Failed> {
    let session = records.session;
    let checked = checked_actions(records, selected)?;
    let local = session.local_executor();
    let executor = ComparingExecutor {
        inner: &local,
        first_results: &session.store,
        checked: &checked,
        ran: AtomicUsize::new(0),
        mismatches: Mutex::default(),
    };
    let cache = HidingCache {
        inner: &session.store,
        checked: &checked,
    };
    let (failures, problems) = run_with_views(common, |listener| {
        session
            .new_build(&cache, &executor, limits, cancel)
            .run(listener);
    })?;
    if !failures.is_empty() || !problems.is_empty() {
        return Err(session.failed(&failures, problems));
    }
    if cancel.load(Ordering::Relaxed) {
        let message = "interrupted: the artifacts are written, but the check is not finished";
        return Err(Problem::new(Code::Cancelled, message).into());
    }
    let ran = executor.ran.into_inner();
    let mismatches = executor
        .mismatches
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    report(&checked, mismatches, ran, records, out, common)
}

/// The actions of the stages to check.
fn checked_actions(records: &Records, selected: &[String]) -> Result<CheckedActions> {
    let session = records.session;
    let mut checked = CheckedActions::new();
    for stage in &session.plan.stages {
        let is_selected = match session.stages.get(&stage.kind) {
            Some(kind) if selected.is_empty() => is_reproducible(kind, stage),
            _ => selected.contains(&stage.id.0) || selected.contains(&stage.name),
        };
        if !is_selected {
            continue;
        }
        let Some(completed) = records.built.completed.get(&stage.id) else {
            continue;
        };
        for (part, key) in &completed.details()?.parts {
            checked.entry(*key).or_insert_with(|| PartId {
                stage: stage.id.0.clone(),
                part: part.clone(),
            });
        }
    }
    Ok(checked)
}

/// Whether two runs of a stage should have the same outputs.
fn is_reproducible(kind: &dyn Stage, stage: &PlannedStage) -> bool {
    !kind.spec().reaches_outside && matches!(kind.is_volatile(&stage.params), Ok(false))
}

/// Shows the second run like the first one. With `--json`, only its result is printed: a stream of
/// events describes one build. Returns failures of parts and other problems.
fn run_with_views(
    common: &Common,
    run: impl FnOnce(&mut dyn Listener),
) -> Result<(Vec<Failure>, Vec<Problem>), Failed> {
    if common.json {
        let mut failures = Failures::default();
        run(&mut failures);
        return Ok((failures.into_vec(), vec![]));
    }
    let mut screen = CheckScreen(Screen::open(
        &ViewArgs::default(),
        &mut OutputPaths::new(&common.cache, []),
        common,
    )?);
    run(&mut screen);
    let (_, failures, problems) = screen.0.close();
    Ok((failures, problems))
}

/// Replaces the reasons for which parts run: the engine believes that the hidden results are lost.
struct CheckScreen(Screen);

impl Listener for CheckScreen {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Started { part, .. } => self.0.on_event(&Event::Started {
                part: part.clone(),
                why: vec![Why::Again],
            }),
            event => self.0.on_event(event),
        }
    }
}

/// An output that differs between two runs.
#[derive(Serialize)]
struct Row {
    part: String,
    output: PartName,
    first: Option<Digest>,
    again: Option<Digest>,
}

/// Writes both versions of the outputs that differ, prints a table of them, and fails if there are
/// any.
fn report(
    checked: &CheckedActions,
    mut mismatches: Vec<Mismatch>,
    ran: usize,
    records: &Records,
    out: &Path,
    common: &Common,
) -> Result<(), Failed> {
    let differs = out.join("differs");
    mismatches.sort_by_key(|mismatch| checked.get(&mismatch.key).map(PartId::to_string));
    let mut rows = vec![];
    for Mismatch { key, first, second } in &mismatches {
        let Some(part) = checked.get(key) else {
            continue;
        };
        let folder = differs.join(&part.stage).join(&part.part);
        for (name, outputs) in [("first", first), ("again", second)] {
            let manifest = Manifest {
                parts: outputs.clone(),
            };
            publish(
                &records.session.store,
                &manifest,
                &folder.join(name),
                Links::default(),
            )?;
        }
        let names: BTreeSet<&PartName> = first.keys().chain(second.keys()).collect();
        for output in names {
            rows.push(Row {
                part: part.to_string(),
                output: output.clone(),
                first: digest_of(first, output),
                again: digest_of(second, output),
            });
        }
    }
    if common.json {
        common.print(&format!("{}\n", json!({"checked": ran, "differs": rows})));
    } else if rows.is_empty() {
        let parts = count(ran, "part");
        common.print(&format!("checked: {parts} ran twice with the same bytes\n"));
    } else {
        common.print(&mismatch_table(&rows));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} of {} had other bytes in the second run",
        mismatches.len(),
        count(ran, "part")
    );
    let help = format!(
        "compare both versions: {}/STAGE/PART/first and .../again",
        differs.display()
    );
    Err(Problem::new(Code::CheckDiffers, message).help(help).into())
}

fn digest_of(outputs: &Outputs, name: &PartName) -> Option<Digest> {
    Some(outputs.get(name)?.content.digest)
}

fn mismatch_table(rows: &[Row]) -> String {
    let mut table = vec![["part", "output", "first", "again"].map(String::from)];
    for row in rows {
        table.push([
            row.part.clone(),
            row.output.to_string(),
            short_digest(row.first),
            short_digest(row.again),
        ]);
    }
    columns(&table)
}

fn short_digest(digest: Option<Digest>) -> String {
    match digest {
        Some(digest) => digest.short(),
        None => "nothing".into(),
    }
}
