//! `--check`: parts of a finished build run once more, through the same scheduler, and their bytes
//! are compared.
//!
//! Two wrappers do it. A cache that does not know the results to be checked makes their parts run;
//! an executor hands on what they gave at first, whatever they give now, so that what follows is
//! checked with the same inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::json;

use super::super::places::Places;
use super::super::screen::{Screen, Views};
use super::super::{Common, Failed};
use super::Records;
use super::columns::columns;
use crate::action::{Action, ActionKey, Demand, Manifest, Outputs, Part, PartName, Stage};
use crate::base::{Code, Digest, Problem, Result, count};
use crate::engine::Limits;
use crate::events::{Event, Failure, Failures, Listener, PartId, Why};
use crate::execute::{Executor, RunOutput, Watch};
use crate::plan::PlannedStage;
use crate::store::{ActionCache, ActionResult, CompleteCache, Disk, Links, publish};

/// The actions to be checked, and the part that each is told of as.
type Checked = BTreeMap<ActionKey, PartId>;

/// Knows all results but those to be checked, and learns nothing.
struct Forgetful<'a> {
    inner: &'a Disk,
    checked: &'a Checked,
}

impl ActionCache for Forgetful<'_> {
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

/// Runs actions, and gives what they gave at first. Not those that run in every build, unless they
/// are to be checked.
struct Again<'a> {
    inner: &'a dyn Executor,
    known: &'a Disk,
    checked: &'a Checked,
    ran: AtomicUsize,
    others: Mutex<Vec<Other>>,
}

/// What of one action's outputs is not the same twice.
struct Other {
    key: ActionKey,
    first: Outputs,
    again: Outputs,
}

impl Executor for Again<'_> {
    fn run(&self, action: &Action, demand: &Demand, watch: &dyn Watch) -> Result<RunOutput> {
        let key = action.key();
        if !self.checked.contains_key(&key)
            && let Some(known) = (CompleteCache {
                actions: self.known,
                blobs: self.known,
            })
            .get(&key)?
        {
            return Ok(RunOutput {
                outputs: known.outputs,
                peak_memory_bytes: known.peak_memory_bytes,
            });
        }
        let ran = self.inner.run(action, demand, watch)?;
        let Some(known) = self.known.get(&key)? else {
            return Ok(ran);
        };
        self.ran.fetch_add(1, Ordering::Relaxed);
        let (first, again) = (
            unlike(&known.outputs, &ran.outputs),
            unlike(&ran.outputs, &known.outputs),
        );
        if !first.is_empty() || !again.is_empty() {
            self.others
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Other { key, first, again });
        }
        Ok(RunOutput {
            outputs: known.outputs,
            ..ran
        })
    }
}

/// Those of `outputs` that `others` has not with the same bytes and facts, wherever the bytes lie.
fn unlike(outputs: &Outputs, others: &Outputs) -> Outputs {
    let is = |a: &Part, b: &Part| a.content.digest == b.content.digest && a.facts == b.facts;
    let is_other =
        |(name, part): &(&PartName, &Part)| !others.get(*name).is_some_and(|other| is(part, other));
    outputs
        .iter()
        .filter(is_other)
        .map(|(name, part)| (name.clone(), part.clone()))
        .collect()
}

/// Runs the parts of the stages `wanted`, or of all that do not reach outside, once more.
pub(super) fn check(
    records: &Records,
    wanted: &[String],
    limits: Limits,
    cancel: &AtomicBool,
    out: &Path,
    common: &Common,
) -> Result<(), Failed> {
    let session = records.session;
    let checked = checked(records, wanted)?;
    let local = session.local();
    let again = Again {
        inner: &local,
        known: &session.store,
        checked: &checked,
        ran: AtomicUsize::new(0),
        others: Mutex::default(),
    };
    let forgetful = Forgetful {
        inner: &session.store,
        checked: &checked,
    };
    let (failures, others) = listened(common, |listener| {
        session
            .prepared(&forgetful, &again, limits, cancel)
            .run(listener);
    })?;
    if !failures.is_empty() || !others.is_empty() {
        return Err(session.failed(&failures, others));
    }
    if cancel.load(Ordering::Relaxed) {
        let message = "interrupted: what was built is written out, but not checked to the end";
        return Err(Problem::new(Code::Cancelled, message).into());
    }
    let ran = again.ran.into_inner();
    let others = again
        .others
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    judge(&checked, others, ran, records, out, common)
}

/// The actions of the stages to be checked.
fn checked(records: &Records, wanted: &[String]) -> Result<Checked> {
    let session = records.session;
    let is_wanted = |stage: &&PlannedStage| match wanted {
        [] => session
            .stages
            .get(&stage.kind)
            .is_some_and(|kind| is_to_be_repeated(kind, stage)),
        wanted => wanted
            .iter()
            .any(|name| stage.id.0 == *name || stage.name == *name),
    };
    let mut checked = Checked::new();
    for stage in session.plan.stages.iter().filter(is_wanted) {
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

/// Whether a stage, run twice, should give the same twice.
fn is_to_be_repeated(kind: &dyn Stage, stage: &PlannedStage) -> bool {
    !kind.spec().reaches_outside
        && kind
            .is_volatile(&stage.params)
            .is_ok_and(|is_volatile| !is_volatile)
}

/// Shows the second run as the first was shown. With `--json` only what comes of it is said: a
/// stream of events tells of one build. Yields what went wrong.
fn listened(
    common: &Common,
    run: impl FnOnce(&mut dyn Listener),
) -> Result<(Vec<Failure>, Vec<Problem>), Failed> {
    if common.json {
        let mut failures = Failures::default();
        run(&mut failures);
        return Ok((failures.into_vec(), vec![]));
    }
    let mut screen = Reasoned(Screen::open(
        &Views::default(),
        &mut Places::new(&common.cache, []),
        common,
    )?);
    run(&mut screen);
    let (_, failures, others) = screen.0.close();
    Ok((failures, others))
}

/// Says why parts really run: the engine takes what is hidden from it for lost.
struct Reasoned(Screen);

impl Listener for Reasoned {
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

/// An output that is not the same twice.
#[derive(Serialize)]
struct Row {
    part: String,
    output: PartName,
    first: Option<Digest>,
    again: Option<Digest>,
}

/// Keeps both copies of what differs, and says that this is a problem.
fn judge(
    checked: &Checked,
    mut others: Vec<Other>,
    ran: usize,
    records: &Records,
    out: &Path,
    common: &Common,
) -> Result<(), Failed> {
    let differs = out.join("differs");
    others.sort_by_key(|other| checked.get(&other.key).map(PartId::to_string));
    let mut rows = vec![];
    for Other { key, first, again } in &others {
        let Some(part) = checked.get(key) else {
            continue;
        };
        let folder = differs.join(&part.stage).join(&part.part);
        for (name, outputs) in [("first", first), ("again", again)] {
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
        let names: BTreeSet<&PartName> = first.keys().chain(again.keys()).collect();
        rows.extend(names.into_iter().map(|output| {
            let digest = |outputs: &Outputs| outputs.get(output).map(|part| part.content.digest);
            Row {
                part: part.to_string(),
                output: output.clone(),
                first: digest(first),
                again: digest(again),
            }
        }));
    }
    if common.json {
        common.print(&format!("{}\n", json!({"checked": ran, "differs": rows})));
    }
    if rows.is_empty() {
        if !common.json {
            common.print(&format!(
                "checked: {} again, the same bytes\n",
                count(ran, "part")
            ));
        }
        return Ok(());
    }
    if !common.json {
        common.print(&table(&rows));
    }
    let message = format!(
        "{} of {} did not give the same twice",
        others.len(),
        count(ran, "part")
    );
    Err(Problem::new(Code::CheckDiffers, message)
        .help(format!(
            "compare both copies: {}/STAGE/PART/first and .../again",
            differs.display()
        ))
        .into())
}

fn table(rows: &[Row]) -> String {
    let short = |digest: &Option<Digest>| digest.map_or("nothing".into(), |digest| digest.short());
    let title = ["part", "output", "first", "again"].map(String::from);
    let row = |row: &Row| {
        [
            row.part.clone(),
            row.output.to_string(),
            short(&row.first),
            short(&row.again),
        ]
    };
    columns(
        &[title]
            .into_iter()
            .chain(rows.iter().map(row))
            .collect::<Vec<_>>(),
    )
}
