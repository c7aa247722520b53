//! What `build`, `plan` and `explain` need alike: the plan, the stages, the cache and the record.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;

use super::places::Places;
use super::{Common, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::{CanonJson, Code, Context, Digest, Problem, Result, hash_bytes};
use crate::engine::{Build, Built, CompletedStage, Limits, Record, StageCache, select};
use crate::events::{Failure, Failures, Listener};
use crate::execute::{Executor, Local};
use crate::plan::{Plan, PlannedStage, SourceMap};
use crate::records::Outline;
use crate::records::lock;
use crate::store::{ActionCache, Disk, LocalStore, Stamp};

/// Hears of each stage that becomes complete.
pub(super) type Completed<'a> = dyn Fn(&PlannedStage, &CompletedStage) + Sync + 'a;

/// Everything laid out for a build.
pub(super) struct Session<'a> {
    pub(super) plan: Plan,
    pub(super) store: Disk,
    pub(super) stages: &'a Registry,
    /// What the whole plan says, whatever is wanted of it.
    pub(super) outline: Outline,
    /// What this program is.
    pub(super) program: Digest,
    /// The files that the plan, whatever is wanted of it, is read from or names.
    reads: Vec<PathBuf>,
    /// What the stages of the plan stand in.
    texts: Arc<SourceMap>,
    last: Record,
}

impl<'a> Session<'a> {
    /// Reads the plan, or the `wanted` part of it, and opens the cache.
    pub(super) fn open(
        args: &PlanArgs,
        wanted: &[String],
        common: &Common,
        stages: &'a Registry,
    ) -> Result<Session<'a>, Failed> {
        let (plan, texts) = args.load_with_texts(stages)?;
        let outline = Outline::of(&plan, &args.folder()?, stages);
        let mut reads = plan.texts.clone();
        reads.push(lock::beside(&args.path));
        plan.stages
            .iter()
            .for_each(|stage| files_in(&stage.params, &mut reads));
        let plan = select(plan, wanted)?;
        look_for_files(&plan, &texts, stages)?;
        let store = Disk::open(&common.cache)?;
        let last = Record::open(store.root(), &plan.name)?;
        let program = program()?;
        Ok(Session {
            plan,
            store,
            stages,
            outline,
            program,
            texts,
            reads,
            last,
        })
    }

    /// Builds, as far as `limits` allow; `completed` hears of each stage that becomes complete.
    pub(super) fn build(
        &self,
        limits: Limits,
        cancel: &AtomicBool,
        completed: &Completed,
        listener: &mut dyn Listener,
    ) -> Built {
        // What cannot be removed is no reason not to build.
        let _ = self.store.remove_abandoned();
        let local = self.local();
        let stage_cache = Some(StageCache {
            notes: &self.store,
            program: self.program,
        });
        Build {
            stage_cache,
            completed,
            ..self.prepared(&self.store, &local, limits, cancel)
        }
        .run(listener)
    }

    /// What runs actions on this machine.
    pub(super) fn local(&self) -> Local<'_> {
        Local {
            store: &self.store,
            stages: self.stages,
            program: PROGRAM.into(),
        }
    }

    /// A build with what `actions` knows, by the hands of `executor`, that recalls no complete
    /// stage and reports none.
    pub(super) fn prepared<'b>(
        &'b self,
        actions: &'b dyn ActionCache,
        executor: &'b dyn Executor,
        limits: Limits,
        cancel: &'b AtomicBool,
    ) -> Build<'b> {
        Build {
            plan: &self.plan,
            stages: self.stages,
            blobs: &self.store,
            actions,
            stage_cache: None,
            notes: &self.store,
            executor,
            last: &self.last,
            limits,
            completed: &|_, _| (),
            cancel,
        }
    }

    /// Finds out what a build would do, part by part.
    pub(super) fn dry_run(&self) -> Result<Built, Failed> {
        let mut failures = Failures::default();
        let limits = Limits {
            jobs: 0,
            memory_bytes: u64::MAX,
            keep_going: false,
        };
        let (local, cancel) = (self.local(), AtomicBool::new(false));
        let built = self
            .prepared(&self.store, &local, limits, &cancel)
            .run(&mut failures);
        match failures.into_vec() {
            failures if failures.is_empty() => Ok(built),
            failures => Err(self.failed(&failures, [])),
        }
    }

    /// The end of a build that failed: `failures`, each with its stages in the plan, and what else
    /// went wrong.
    pub(super) fn failed(
        &self,
        failures: &[Failure],
        others: impl IntoIterator<Item = Problem>,
    ) -> Failed {
        let mut problems = vec![];
        for failure in failures {
            let mut problem = failure.report();
            let stages = failure.stages();
            for stage in &self.plan.stages {
                let at = &stage.at;
                // Instances of one stage stand at one place.
                if stages.contains(&stage.id.0.as_str())
                    && !problem.labels.iter().any(|(known, _)| known == at)
                {
                    problem = problem.at(at.clone(), "this stage");
                }
            }
            problems.push(problem);
        }
        problems.extend(others);
        Failed {
            problems,
            source: Some(Arc::clone(&self.texts)),
        }
    }

    /// Where this call may write.
    pub(super) fn places(&self) -> Places {
        Places::new(self.store.root(), self.reads.iter().cloned())
    }

    /// Remembers what was built, for the reasons of the next build. A cache that is read-only
    /// remembers nothing.
    pub(super) fn remember(&mut self, built: &Built) -> Result<()> {
        if self.last.merge(built)? && !self.store.is_read_only() {
            // What is said to be there survives a power cut.
            self.store.sync()?;
            self.last.write()?;
        }
        Ok(())
    }
}

/// Adds each path that `params` name as `file:PATH`.
fn files_in(params: &Value, paths: &mut Vec<PathBuf>) {
    match params {
        Value::String(text) => paths.extend(text.strip_prefix("file:").map(PathBuf::from)),
        Value::Array(values) => values.iter().for_each(|value| files_in(value, paths)),
        Value::Object(table) => table.values().for_each(|value| files_in(value, paths)),
        _ => {}
    }
}

/// Reports all files of this machine that are missing before the build starts. A file that several
/// stages lack is one problem.
fn look_for_files(plan: &Plan, texts: &Arc<SourceMap>, stages: &Registry) -> Result<(), Failed> {
    // Each without labels, and with them.
    let mut missing: Vec<(Problem, Problem)> = vec![];
    for stage in &plan.stages {
        let Some(kind) = stages.get(&stage.kind) else {
            continue;
        };
        let Err(problem) = kind.files(&stage.params) else {
            continue;
        };
        let index = match missing.iter().position(|(known, _)| *known == problem) {
            Some(index) => index,
            None => {
                missing.push((problem.clone(), problem));
                missing.len() - 1
            }
        };
        let (_, problem) = &mut missing[index];
        if !problem.labels.iter().any(|(at, _)| *at == stage.at) {
            *problem = problem.clone().at(stage.at.clone(), "this stage needs it");
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failed {
        problems: missing.into_iter().map(|(_, problem)| problem).collect(),
        source: Some(Arc::clone(texts)),
    })
}

/// This program's file, whatever becomes of its name during a build.
pub(super) const PROGRAM: &str = "/proc/self/exe";

/// What this program is: another file, or the same one written anew, may expand stages in another
/// way.
fn program() -> Result<Digest> {
    let file = std::fs::metadata(PROGRAM)
        .context(Code::CallProgram, || "look at this program's file".into())?;
    CanonJson::of(&Stamp::of(&file)).map(|stamp| hash_bytes(stamp.to_string().as_bytes()))
}
