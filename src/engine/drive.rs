//! The driver: performs the effects of the scheduler and sends their results to it.
//!
//! One loop calls the scheduler; all answers arrive over one channel. Jobs run on a pool of
//! workers, which grows to the number of jobs that the scheduler runs at once. Everything else that
//! may take long runs on a thread of its own.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::explain::reasons;
use super::look_up::stage_key;
use super::monitor::JobMonitor;
use super::proof::{note_proof, why_unproved};
use super::workers::WorkerPool;
use super::{
    Built, CompletedStage, Effect, Input, JobId, Limits, PastRun, ProbeResult, Record, Scheduler,
    StageCache, StageIndex, Task,
};
use crate::action::{Inputs, Isolation, Registry, Stage};
use crate::base::{Code, Digest, Problem, Result};
use crate::events::{Listener, PartId};
use crate::execute::Executor;
use crate::plan::{Plan, PlannedStage};
use crate::store::{
    ActionCache, ActionLock, ActionResult, BlobStore, CompleteCache, InputSnapshot, Lookup, Notes,
};

/// Time between two checks of [`Build::cancel`].
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// The minimum number of probes for a thread.
const PROBES_PER_THREAD: usize = 64;

/// Everything a build needs.
pub struct Build<'a> {
    /// What to build.
    pub plan: &'a Plan,
    /// The stage kinds.
    pub stages: &'a Registry,
    /// The store of outputs.
    pub blobs: &'a dyn BlobStore,
    /// The results of actions.
    pub actions: &'a dyn ActionCache,
    /// The cache of completed stages; without it, all parts are looked for.
    pub stage_cache: Option<StageCache<'a>>,
    /// Notes on local files and results.
    pub notes: &'a dyn Notes,
    /// Runs actions.
    pub executor: &'a dyn Executor,
    /// The record of the last build, for reasons and the order of jobs.
    pub last: &'a Record,
    /// Limits of resources.
    pub limits: Limits,
    /// Called for each stage that this build completes, on any thread. Not for stages that an
    /// earlier build completed.
    pub completed: &'a (dyn Fn(&PlannedStage, &CompletedStage) + Sync),
    /// Set by the caller to stop the build.
    pub cancel: &'a AtomicBool,
}

/// What the driver knows about a stage when its inputs are complete.
struct StageInputs {
    key: Digest,
    files: BTreeMap<PathBuf, InputSnapshot>,
}

struct Driver<'a> {
    build: &'a Build<'a>,
    /// By stage, set when its inputs are complete.
    inputs: Vec<OnceLock<StageInputs>>,
}

/// A request of the scheduler to look for a task.
type Probe = (JobId, PartId, Task);

impl Build<'_> {
    /// Runs the build. Problems are reported to `listener` as events.
    pub fn run(&self, listener: &mut dyn Listener) -> Built {
        let mut driver = Driver {
            build: self,
            inputs: vec![],
        };
        driver
            .inputs
            .resize_with(self.plan.stages.len(), OnceLock::new);
        let driver = &driver;
        let mut scheduler = Scheduler::new(self.plan, self.limits, self.last.history());
        let (send, receive) = mpsc::channel();
        // Called once, since it reads a dozen files.
        let threads = match thread::available_parallelism() {
            Ok(threads) => threads.get(),
            Err(_) => 1,
        };
        thread::scope(|scope| {
            let workers = WorkerPool::new(send.clone());
            let mut inputs = VecDeque::from([Input::Begin]);
            let mut is_cancelled = false;
            loop {
                let mut probes: Vec<Probe> = vec![];
                while let Some(input) = inputs.pop_front() {
                    for effect in scheduler.step(input) {
                        let send = send.clone();
                        match effect {
                            Effect::LookUp { stage, producers } => match driver.files(stage) {
                                // Without files it only reads a note, which is faster than starting
                                // a thread.
                                Ok(files) if files.is_empty() => {
                                    inputs.push_back(driver.look_up(stage, &producers, Ok(files)));
                                }
                                files => {
                                    scope.spawn(move || {
                                        let input = driver.look_up(stage, &producers, files);
                                        answer(&send, vec![input]);
                                    });
                                }
                            },
                            Effect::Foresee {
                                stage,
                                inputs: known,
                            } => {
                                inputs.push_back(driver.foresee(stage, &known));
                            }
                            Effect::Expand { stage, inputs } => {
                                scope.spawn(move || {
                                    answer(&send, vec![driver.expand(stage, inputs)]);
                                });
                            }
                            Effect::Probe { job, part, task } => probes.push((job, part, task)),
                            Effect::Run {
                                job,
                                stage,
                                task,
                                delay,
                            } => {
                                workers.spawn(scope, move || {
                                    driver.run(job, stage, &task, delay, &send)
                                });
                            }
                            Effect::Note { stage, completed } => {
                                scope.spawn(move || driver.note(stage, &completed));
                            }
                            Effect::Emit(event) => listener.on_event(&event),
                            Effect::Finish => return,
                        }
                    }
                }
                let share = probes.len().div_ceil(threads).max(PROBES_PER_THREAD);
                while !probes.is_empty() {
                    let share = probes.split_off(probes.len().saturating_sub(share));
                    let send = send.clone();
                    scope.spawn(move || answer(&send, driver.probe_all(&share)));
                }
                inputs.extend(self.next(&receive, &mut is_cancelled));
            }
        });
        scheduler.into_built()
    }

    fn next(&self, receive: &Receiver<Vec<Input>>, is_cancelled: &mut bool) -> Vec<Input> {
        loop {
            if !*is_cancelled && self.cancel.load(Ordering::Relaxed) {
                *is_cancelled = true;
                return vec![Input::Cancel];
            }
            match receive.recv_timeout(CANCEL_POLL) {
                Ok(inputs) => return inputs,
                // The loop above has a sender, so the channel is never disconnected.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }
}

impl Driver<'_> {
    fn planned(&self, stage: StageIndex) -> &PlannedStage {
        &self.build.plan.stages[stage.index()]
    }

    fn kind(&self, kind: &str) -> Result<&dyn Stage> {
        match self.build.stages.get(kind) {
            Some(kind) => Ok(kind),
            None => {
                let message = format!("there is no stage kind `{kind}`");
                Err(Problem::new(Code::EngineUnknownKind, message))
            }
        }
    }

    fn is_volatile(&self, stage: &PlannedStage) -> Result<bool> {
        self.kind(&stage.kind)?.is_volatile(&stage.params)
    }

    /// The local files that a stage reads.
    fn files(&self, stage: StageIndex) -> Result<Vec<PathBuf>> {
        let planned = self.planned(stage);
        catch_panic(&planned.kind, || {
            self.kind(&planned.kind)?.files(&planned.params)
        })
    }

    fn look_up(
        &self,
        stage: StageIndex,
        producers: &[Digest],
        paths: Result<Vec<PathBuf>>,
    ) -> Input {
        let completed = catch_panic(&self.planned(stage).kind, || {
            self.find_completed(stage, producers, &paths?)
        });
        Input::LookedUp { stage, completed }
    }

    /// The stage as an earlier build completed it, with the same inputs.
    fn find_completed(
        &self,
        stage: StageIndex,
        producers: &[Digest],
        paths: &[PathBuf],
    ) -> Result<Option<CompletedStage>> {
        let Build { notes, cancel, .. } = self.build;
        let planned = self.planned(stage);
        let mut files = BTreeMap::new();
        for path in paths {
            let snapshot = InputSnapshot::take(*notes, path, cancel)?;
            files.insert(path.clone(), snapshot);
        }
        let key = stage_key(planned, producers, &files)?;
        let _ = self.inputs[stage.index()].set(StageInputs { key, files });
        if self.is_volatile(planned)? {
            return Ok(None);
        }
        match &self.build.stage_cache {
            Some(cache) => cache.look_up(&key, self.build.blobs),
            None => Ok(None),
        }
    }

    /// Stores a completed stage. If that fails, the next build looks for each part.
    fn note(&self, stage: StageIndex, completed: &CompletedStage) {
        if let Some(cache) = &self.build.stage_cache
            && let Some(inputs) = self.inputs[stage.index()].get()
        {
            let _ = cache.put(&inputs.key, completed);
        }
        (self.build.completed)(self.planned(stage), completed);
    }

    fn foresee(&self, stage: StageIndex, inputs: &Inputs) -> Input {
        let planned = self.planned(stage);
        let result = catch_panic(&planned.kind, || {
            self.kind(&planned.kind)?.foresee(&planned.params, inputs)
        });
        Input::Foreseen { stage, result }
    }

    fn expand(&self, stage: StageIndex, inputs: Inputs) -> Input {
        let planned = self.planned(stage);
        let tasks = catch_panic(&planned.kind, || self.tasks(stage, inputs));
        Input::Expanded { stage, tasks }
    }

    fn tasks(&self, stage: StageIndex, mut inputs: Inputs) -> Result<Vec<Task>> {
        let planned = self.planned(stage);
        let kind = self.kind(&planned.kind)?;
        if let Some(local) = self.inputs[stage.index()].get() {
            for (path, file) in &local.files {
                inputs.files.insert(path.clone(), file.digest);
            }
        }
        for id in planned.slots.values().flatten() {
            if let Some(producer) = self.build.plan.stages.iter().find(|stage| stage.id == *id) {
                let artifact = self.kind(&producer.kind)?.spec().output;
                inputs.artifacts.insert(id.0.clone(), artifact);
            }
        }
        let is_volatile = self.is_volatile(planned)?;
        let mut tasks = vec![];
        for order in kind.expand(&planned.params, &inputs)? {
            tasks.push(Task::new(order, kind, is_volatile)?);
        }
        Ok(tasks)
    }

    fn probe_all(&self, probes: &[Probe]) -> Vec<Input> {
        let mut inputs = vec![];
        for (job, part, task) in probes {
            let result = catch_panic(&task.action.stage, || self.probe(part, task));
            inputs.push(Input::Probed { job: *job, result });
        }
        inputs
    }

    fn probe(&self, part: &PartId, task: &Task) -> Result<ProbeResult> {
        let Build {
            actions,
            blobs,
            notes,
            last,
            ..
        } = self.build;
        let lookup = self.complete_cache().look_up(&task.key)?;
        if let Lookup::Hit(result) = &lookup
            && !task.is_volatile
        {
            return Ok(match why_unproved(&task.proof, result, *blobs, *notes)? {
                None => ProbeResult::Hit(result.clone()),
                Some(why) => ProbeResult::Miss(vec![why], None),
            });
        }
        let last_key = last.key(part);
        let last_result = match &last_key {
            Some(key) => actions.get(key)?,
            None => None,
        };
        let past = last_result.as_ref().map(|result| PastRun {
            took_ms: result.took_ms,
            peak_memory_bytes: result.peak_memory_bytes,
        });
        let why = reasons(task, &lookup, last_key, last_result.as_ref());
        Ok(ProbeResult::Miss(why, past))
    }

    fn complete_cache(&self) -> CompleteCache<'_> {
        CompleteCache {
            actions: self.build.actions,
            blobs: self.build.blobs,
        }
    }

    fn run(
        &self,
        job: JobId,
        stage: StageIndex,
        task: &Task,
        delay: Duration,
        send: &Sender<Vec<Input>>,
    ) -> Input {
        let progress = |done, total, unit| {
            let input = Input::Progressed {
                job,
                done,
                total,
                unit,
            };
            answer(send, vec![input]);
        };
        let timeout = self.planned(stage).timeout;
        let result = catch_panic(&task.action.stage, || {
            let monitor = JobMonitor::new(&progress, self.build.cancel, timeout, delay);
            self.run_task(stage, task, &monitor)
        });
        Input::Ran { job, result }
    }

    fn run_task(
        &self,
        stage: StageIndex,
        task: &Task,
        monitor: &JobMonitor,
    ) -> Result<ActionResult> {
        let Build {
            actions,
            notes,
            executor,
            cancel,
            ..
        } = self.build;
        monitor.wait_for_start()?;
        let action_lock = match self.lock_action(task, monitor)? {
            LockOutcome::Locked(action_lock) => action_lock,
            LockOutcome::AlreadyDone(result) => return Ok(result),
        };
        let start = Instant::now();
        let output = executor.run(&task.action, &task.demand, monitor);
        let output = monitor.check_timeout(output)?;
        if let Some(inputs) = self.inputs[stage.index()].get() {
            for file in inputs.files.values() {
                file.check_unchanged(*notes, cancel)?;
            }
        }
        let result = ActionResult {
            action: task.action.canonical_text(),
            outputs: output.outputs,
            took_ms: start.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            peak_memory_bytes: output.peak_memory_bytes,
        };
        actions.put(&result)?;
        note_proof(&task.proof, &result, *notes)?;
        drop(action_lock);
        Ok(result)
    }

    /// Waits until no other process runs the same action, and uses its result if there is one.
    fn lock_action(&self, task: &Task, monitor: &JobMonitor) -> Result<LockOutcome> {
        let Build {
            actions,
            blobs,
            notes,
            ..
        } = self.build;
        // Running a small action twice is faster than waiting for another process.
        if task.demand.isolation == Isolation::Thread && task.action.origin.is_none() {
            return Ok(LockOutcome::Locked(ActionLock::default()));
        }
        let mut has_waited = false;
        let action_lock = loop {
            if let Some(action_lock) = actions.lock(&task.key)? {
                break action_lock;
            }
            has_waited = true;
            monitor.sleep()?;
        };
        if has_waited
            && !task.is_volatile
            && let Some(result) = self.complete_cache().get(&task.key)?
            && why_unproved(&task.proof, &result, *blobs, *notes)?.is_none()
        {
            return Ok(LockOutcome::AlreadyDone(result));
        }
        Ok(LockOutcome::Locked(action_lock))
    }
}

/// The outcome of locking an action.
enum LockOutcome {
    Locked(ActionLock),
    /// Another process ran the action while this one waited.
    AlreadyDone(ActionResult),
}

/// Sends inputs for the scheduler to the loop.
fn answer(send: &Sender<Vec<Input>>, inputs: Vec<Input>) {
    // Does not fail: the loop ends only when no answer is outstanding.
    let _ = send.send(inputs);
}

/// Makes a panic of a stage a problem, since the loop waits for an answer.
fn catch_panic<T>(kind: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => Err(panicked(kind, &*panic)),
    }
}

fn panicked(kind: &str, panic: &(dyn Any + Send)) -> Problem {
    let text = if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no message"
    };
    Problem::new(
        Code::EnginePanicked,
        format!("stage `{kind}` panicked: {text}"),
    )
    .help(
        "a mistake of kiln, not of the plan: please report it with what `kiln build --log FILE` \
         writes",
    )
}
