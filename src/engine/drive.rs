//! Does what the scheduler says and brings back what came of it.
//!
//! One loop steps the scheduler; every answer comes over one channel. Whatever may take time happens on a thread
//! of its own; how many run at once is the scheduler's affair.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::explain::reasons;
use super::{Answer, Built, Effect, Input, JobId, Limits, Record, Scheduler, StageIndex, Task};
use crate::action::{Inputs, Registry, WorkOrder};
use crate::base::{Problem, Result};
use crate::events::{Listener, PartId};
use crate::execute::{Executor, Watch};
use crate::plan::Plan;
use crate::store::{ActionCache, ActionResult, BlobStore, Complete, Found};

/// How often an interruption is looked for.
const GLANCE: Duration = Duration::from_millis(50);

/// How often a running job's progress is told.
const PROGRESS: Duration = Duration::from_millis(50);

/// Probes that are worth a thread.
const PROBES_PER_THREAD: usize = 64;

/// Everything a build needs.
pub struct Build<'a> {
    /// What is to be built.
    pub plan: &'a Plan,
    /// The stage kinds.
    pub stages: &'a Registry,
    /// Where outputs lie.
    pub blobs: &'a dyn BlobStore,
    /// Where results are known.
    pub actions: &'a dyn ActionCache,
    /// Where actions run.
    pub executor: &'a dyn Executor,
    /// What was built last, for the reasons.
    pub last: &'a Record,
    /// What may be in use at once.
    pub limits: Limits,
    /// Set from outside to stop the build.
    pub cancel: &'a AtomicBool,
}

impl Build<'_> {
    /// Builds. What goes wrong is told to `listener`.
    pub fn run(&self, listener: &mut dyn Listener) -> Built {
        let mut scheduler = Scheduler::new(self.plan, self.limits);
        let (send, receive) = mpsc::channel();
        // Once: it reads a dozen files.
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            let mut input = Input::Begin;
            let mut is_cancelled = false;
            loop {
                let mut probes = vec![];
                for effect in scheduler.step(input) {
                    let send = send.clone();
                    match effect {
                        Effect::Expand { stage, inputs } => _ = scope.spawn(move || self.expand(stage, &inputs, &send)),
                        Effect::Probe { job, part, task } => probes.push((job, part, task)),
                        Effect::Run { job, task } => _ = scope.spawn(move || self.run_job(job, &task, &send)),
                        Effect::Tell(event) => listener.hear(&event),
                        Effect::Finish => return,
                    }
                }
                let share = probes.len().div_ceil(threads).max(PROBES_PER_THREAD);
                while !probes.is_empty() {
                    let share = probes.split_off(probes.len().saturating_sub(share));
                    let send = send.clone();
                    scope.spawn(move || share.iter().for_each(|(job, part, task)| self.probe(*job, part, task, &send)));
                }
                input = self.next(&receive, &mut is_cancelled);
            }
        });
        scheduler.into_built()
    }

    fn next(&self, receive: &Receiver<Input>, is_cancelled: &mut bool) -> Input {
        loop {
            if !*is_cancelled && self.cancel.load(Ordering::Relaxed) {
                *is_cancelled = true;
                return Input::Cancel;
            }
            match receive.recv_timeout(GLANCE) {
                Ok(input) => return input,
                // The loop above holds a sender itself, so the channel never closes.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    fn expand(&self, stage: StageIndex, inputs: &Inputs, send: &Sender<Input>) {
        let planned = &self.plan.stages[stage.index()];
        let tasks = guarded(&planned.kind, || {
            let kind = self.stages.get(&planned.kind).ok_or_else(|| {
                Problem::new("kiln::engine::unknown_kind", format!("there is no stage kind `{}`", planned.kind))
            })?;
            let task = |order: WorkOrder| {
                let (name, demand) = (order.name.clone(), order.demand);
                let action = order.into_action(kind.spec());
                Task { name, key: action.key(), action: Arc::new(action), demand }
            };
            Ok(kind.expand(&planned.params, inputs)?.into_iter().map(task).collect())
        });
        answer(send, Input::Expanded { stage, tasks });
    }

    fn probe(&self, job: JobId, part: &PartId, task: &Task, send: &Sender<Input>) {
        let result = guarded(&task.action.stage, || {
            let complete = Complete { actions: self.actions, blobs: self.blobs };
            Ok(match complete.find(&task.key)? {
                Found::Hit(result) => Answer::Hit(result),
                found => Answer::Miss(reasons(part, task, &found, self.last, self.actions)?),
            })
        });
        answer(send, Input::Probed { job, answer: result });
    }

    fn run_job(&self, job: JobId, task: &Task, send: &Sender<Input>) {
        let result = guarded(&task.action.stage, || {
            let watch = Onlooker { job, send, cancel: self.cancel, last: Mutex::new(None) };
            let begun = Instant::now();
            let ran = self.executor.run(&task.action, &task.demand, &watch)?;
            let result = ActionResult {
                action: task.action.canonical_text(),
                outputs: ran.outputs,
                took_ms: begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
                peak_memory_bytes: ran.peak_memory_bytes,
            };
            self.actions.put(&result)?;
            Ok(result)
        });
        answer(send, Input::Ran { job, result });
    }
}

/// Sends an answer to the loop.
fn answer(send: &Sender<Input>, input: Input) {
    // The loop ends only when nothing is awaited, so it is there to hear this.
    let _ = send.send(input);
}

/// Makes a panic a problem: the loop waits for an answer.
fn guarded<T>(kind: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let literal = panic.downcast_ref::<&str>().copied();
        let text = literal.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        Err(Problem::new("kiln::engine::panicked", format!("stage `{kind}` panicked: {text}")))
    })
}

/// The engine's eye on a running job.
struct Onlooker<'a> {
    job: JobId,
    send: &'a Sender<Input>,
    cancel: &'a AtomicBool,
    last: Mutex<Option<Instant>>,
}

impl Watch for Onlooker<'_> {
    fn progress(&self, done: u64, total: u64, unit: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if done == total || last.is_none_or(|last| last.elapsed() >= PROGRESS) {
            *last = Some(Instant::now());
            answer(self.send, Input::Progressed { job: self.job, done, total, unit: unit.into() });
        }
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}
