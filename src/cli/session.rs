//! What `build`, `plan`, `explain` and `cache export` have in common: the plan, the cache, the
//! stage kinds and the record of the last builds.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::Value;

use super::output_paths::OutputPaths;
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

/// Called for each stage when it is complete.
pub(super) type OnCompleted<'a> = dyn Fn(&PlannedStage, &CompletedStage) + Sync + 'a;

/// An opened plan and cache.
pub(super) struct Session<'a> {
    /// The selected stages of the plan.
    pub(super) plan: Plan,
    pub(super) store: Disk,
    pub(super) stages: &'a Registry,
    /// The outline of the complete plan, whatever stages are selected.
    pub(super) outline: Outline,
    /// Identifies the file of this program.
    pub(super) program: Digest,
    /// The files that the complete plan is read from or refers to.
    input_files: Vec<PathBuf>,
    /// The source texts of the plan.
    texts: Arc<SourceMap>,
    last_builds: Record,
}

impl<'a> Session<'a> {
    /// Reads the plan, selects the stages `selected` (all that are not optional if it is empty),
    /// and opens the cache.
    pub(super) fn open(
        args: &PlanArgs,
        selected: &[String],
        common: &Common,
        stages: &'a Registry,
    ) -> Result<Session<'a>, Failed> {
        let (plan, texts) = args.load_with_texts(stages)?;
        let outline = Outline::of(&plan, &args.folder()?, stages);
        let mut input_files = plan.texts.clone();
        input_files.push(lock::beside(&args.path));
        for stage in &plan.stages {
            add_file_params(&stage.params, &mut input_files);
        }
        let plan = select(plan, selected)?;
        check_files_exist(&plan, &texts, stages)?;
        let store = Disk::open(&common.cache)?;
        let last_builds = Record::open(store.root(), &plan.name)?;
        let program = program_digest()?;
        Ok(Session {
            plan,
            store,
            stages,
            outline,
            program,
            input_files,
            texts,
            last_builds,
        })
    }

    /// The selected stage `id`.
    pub(super) fn stage(&self, id: &str) -> Option<&PlannedStage> {
        self.plan.stages.iter().find(|stage| stage.id.0 == id)
    }

    /// Builds the plan within `limits`, and calls `on_completed` for each complete stage.
    pub(super) fn build(
        &self,
        limits: Limits,
        cancel: &AtomicBool,
        on_completed: &OnCompleted,
        listener: &mut dyn Listener,
    ) -> Built {
        // Leftovers that cannot be removed do not prevent a build.
        let _ = self.store.remove_abandoned();
        let local = self.local_executor();
        let stage_cache = Some(StageCache {
            notes: &self.store,
            program: self.program,
        });
        Build {
            stage_cache,
            completed: on_completed,
            ..self.new_build(&self.store, &local, limits, cancel)
        }
        .run(listener)
    }

    /// Runs actions on this machine.
    pub(super) fn local_executor(&self) -> Local<'_> {
        Local {
            store: &self.store,
            stages: self.stages,
            program: PROGRAM.into(),
        }
    }

    /// A build that finds results in `actions` and runs actions with `executor`. It does not use
    /// the records of complete stages, and calls nothing when a stage is complete.
    pub(super) fn new_build<'b>(
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
            last: &self.last_builds,
            limits,
            completed: &|_, _| (),
            cancel,
        }
    }

    /// Finds out what a build would run, without running anything.
    pub(super) fn dry_run(&self) -> Result<Built, Failed> {
        let mut failures = Failures::default();
        let limits = Limits {
            jobs: 0,
            memory_bytes: u64::MAX,
            keep_going: false,
        };
        let (local, cancel) = (self.local_executor(), AtomicBool::new(false));
        let built = self
            .new_build(&self.store, &local, limits, &cancel)
            .run(&mut failures);
        let failures = failures.into_vec();
        if failures.is_empty() {
            Ok(built)
        } else {
            Err(self.failed(&failures, []))
        }
    }

    /// The result of a failed build: `failures`, each with labels at its stages in the plan, and
    /// other problems.
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
                if stages.contains(&stage.id.0.as_str()) {
                    problem = with_stage_label(problem, stage, "this stage");
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

    /// The paths that this command may write to.
    pub(super) fn output_paths(&self) -> OutputPaths {
        OutputPaths::new(self.store.root(), self.input_files.iter().cloned())
    }

    /// Records what was built, so that the next build can say why it runs parts. Does nothing for
    /// a read-only cache.
    pub(super) fn write_record(&mut self, built: &Built) -> Result<()> {
        if self.last_builds.merge(built)? && !self.store.is_read_only() {
            // The recorded results must survive a power failure.
            self.store.sync()?;
            self.last_builds.write()?;
        }
        Ok(())
    }
}

/// Adds a label at `stage`, once: instances of a stage in a matrix have the same place.
fn with_stage_label(problem: Problem, stage: &PlannedStage, label: &str) -> Problem {
    for (span, _) in &problem.labels {
        if *span == stage.at {
            return problem;
        }
    }
    problem.at(stage.at.clone(), label)
}

/// Adds the path of each parameter `file:PATH` to `paths`.
fn add_file_params(params: &Value, paths: &mut Vec<PathBuf>) {
    match params {
        Value::String(text) => {
            if let Some(path) = text.strip_prefix("file:") {
                paths.push(path.into());
            }
        }
        Value::Array(values) => {
            for value in values {
                add_file_params(value, paths);
            }
        }
        Value::Object(table) => {
            for value in table.values() {
                add_file_params(value, paths);
            }
        }
        _ => {}
    }
}

/// Reports all missing local files before the build starts. A file that several stages need is one
/// problem with several labels.
fn check_files_exist(plan: &Plan, texts: &Arc<SourceMap>, stages: &Registry) -> Result<(), Failed> {
    // Each problem as the stage kind reports it, and with labels.
    let mut missing: Vec<(Problem, Problem)> = vec![];
    for stage in &plan.stages {
        let Some(kind) = stages.get(&stage.kind) else {
            continue;
        };
        let Err(problem) = kind.files(&stage.params) else {
            continue;
        };
        let label = "this stage needs it";
        match missing.iter_mut().find(|(other, _)| *other == problem) {
            Some((_, labelled)) => *labelled = with_stage_label(labelled.clone(), stage, label),
            None => missing.push((problem.clone(), with_stage_label(problem, stage, label))),
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

/// The file of this program. The link stays valid if the file is moved during a build.
pub(super) const PROGRAM: &str = "/proc/self/exe";

/// Identifies the file of this program: another version may expand stages in another way.
fn program_digest() -> Result<Digest> {
    let file = std::fs::metadata(PROGRAM)
        .context(Code::CallProgram, || "look at this program's file".into())?;
    let stamp = CanonJson::of(&Stamp::of(&file))?;
    Ok(hash_bytes(stamp.to_string().as_bytes()))
}
