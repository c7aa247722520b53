//! Does what the scheduler says and brings back what came of it.
//!
//! One loop steps the scheduler; every answer comes over one channel. Jobs run on workers, of which
//! there are as many as jobs ever ran at once: how many that is, is the scheduler's affair.
//! Whatever else may take time happens on a thread of its own.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::explain::reasons;
use super::look_up::question;
use super::monitor::JobMonitor;
use super::proof;
use super::workers::WorkerPool;
use super::{
    Answer, Built, CompletedStage, Effect, Input, JobId, Limits, Memory, Past, Record, Scheduler,
    StageIndex, Task,
};
use crate::action::{Inputs, Isolation, Registry, Stage, WorkOrder};
use crate::base::{Code, Digest, Problem, Result};
use crate::events::{Listener, PartId};
use crate::execute::Executor;
use crate::plan::{Plan, PlannedStage};
use crate::store::{
    ActionCache, ActionLock, ActionResult, BlobStore, Complete, Found, Notes, Watched,
};

/// How often an interruption is looked for.
const GLANCE: Duration = Duration::from_millis(50);

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
    /// Where complete stages are remembered; without it every part is looked for.
    pub memory: Option<Memory<'a>>,
    /// What is known of files that are not the cache's own.
    pub notes: &'a dyn Notes,
    /// Where actions run.
    pub executor: &'a dyn Executor,
    /// What was built last, for the reasons and the order of work.
    pub last: &'a Record,
    /// What may be in use at once.
    pub limits: Limits,
    /// Hears of each stage that is complete and was not so in an earlier build, on some thread.
    pub completed: &'a (dyn Fn(&PlannedStage, &CompletedStage) + Sync),
    /// Set from outside to stop the build.
    pub cancel: &'a AtomicBool,
}

/// What a stage was asked for by: the question, and the files of this machine that it reads.
struct Asked {
    question: Digest,
    files: BTreeMap<PathBuf, Watched>,
}

/// A build at work.
struct Drive<'a> {
    build: &'a Build<'a>,
    /// By stage, once its inputs are there.
    asked: Vec<OnceLock<Asked>>,
}

impl Build<'_> {
    /// Builds. What goes wrong is told to `listener`.
    pub fn run(&self, listener: &mut dyn Listener) -> Built {
        let drive = Drive {
            build: self,
            asked: self.plan.stages.iter().map(|_| OnceLock::new()).collect(),
        };
        let mut scheduler = Scheduler::new(self.plan, self.limits, self.last.history());
        let (send, receive) = mpsc::channel();
        // Once: it reads a dozen files.
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            let workers = WorkerPool::new(send.clone());
            let mut inputs = VecDeque::from([Input::Begin]);
            let mut is_cancelled = false;
            loop {
                let mut probes = vec![];
                while let Some(input) = inputs.pop_front() {
                    for effect in scheduler.step(input) {
                        let (drive, send) = (&drive, send.clone());
                        match effect {
                            // To read a note takes less time than to begin a thread; to hash files
                            // may take long.
                            Effect::LookUp { stage, producers } => match drive.files(stage) {
                                Ok(files) if files.is_empty() => {
                                    inputs.push_back(drive.look_up(stage, &producers, Ok(files)))
                                }
                                files => {
                                    _ = scope.spawn(move || {
                                        answer(&send, drive.look_up(stage, &producers, files))
                                    })
                                }
                            },
                            Effect::Expand { stage, inputs } => {
                                scope.spawn(move || answer(&send, drive.expand(stage, inputs)));
                            }
                            Effect::Probe { job, part, task } => probes.push((job, part, task)),
                            Effect::Run {
                                job,
                                stage,
                                task,
                                delay,
                            } => {
                                workers.work(scope, move || {
                                    drive.run(job, stage, &task, delay, &send)
                                });
                            }
                            Effect::Note { stage, completed } => {
                                _ = scope.spawn(move || drive.note(stage, &completed))
                            }
                            Effect::Emit(event) => listener.on_event(&event),
                            Effect::Finish => return,
                        }
                    }
                }
                let share = probes.len().div_ceil(threads).max(PROBES_PER_THREAD);
                while !probes.is_empty() {
                    let share = probes.split_off(probes.len().saturating_sub(share));
                    let (drive, send) = (&drive, send.clone());
                    let probe = move |(job, part, task): &(JobId, PartId, Task)| {
                        drive.probe(*job, part, task)
                    };
                    // All of a share in one message: they are many and small.
                    scope.spawn(move || send_all(&send, share.iter().map(probe).collect()));
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
            match receive.recv_timeout(GLANCE) {
                Ok(inputs) => return inputs,
                // The loop above holds a sender itself, so the channel never closes.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }
}

impl Drive<'_> {
    /// The files of this machine that a stage reads.
    fn files(&self, stage: StageIndex) -> Result<Vec<PathBuf>> {
        let planned = &self.build.plan.stages[stage.index()];
        guarded(&planned.kind, || {
            self.kind(&planned.kind)?.files(&planned.params)
        })
    }

    fn look_up(
        &self,
        stage: StageIndex,
        producers: &[Digest],
        paths: Result<Vec<PathBuf>>,
    ) -> Input {
        let Build {
            plan,
            notes,
            memory,
            blobs,
            cancel,
            ..
        } = self.build;
        let planned = &plan.stages[stage.index()];
        let completed = guarded(&planned.kind, || {
            let mut files = BTreeMap::new();
            for path in paths? {
                files.insert(path.clone(), Watched::look(*notes, &path, cancel)?);
            }
            let question = question(planned, producers, &files)?;
            let asked = self.asked[stage.index()].get_or_init(|| Asked { question, files });
            if self.is_volatile(planned)? {
                return Ok(None);
            }
            memory
                .as_ref()
                .map_or(Ok(None), |memory| memory.look_up(&asked.question, *blobs))
        });
        Input::LookedUp { stage, completed }
    }

    /// Notes a complete stage, and says so. What was not noted is only looked for part by part.
    fn note(&self, stage: StageIndex, completed: &CompletedStage) {
        if let (Some(memory), Some(asked)) = (&self.build.memory, self.asked[stage.index()].get()) {
            let _ = memory.note(&asked.question, completed);
        }
        (self.build.completed)(&self.build.plan.stages[stage.index()], completed);
    }

    fn is_volatile(&self, stage: &PlannedStage) -> Result<bool> {
        self.kind(&stage.kind)?.is_volatile(&stage.params)
    }

    fn kind(&self, kind: &str) -> Result<&dyn Stage> {
        let unknown = || {
            Problem::new(
                Code::EngineUnknownKind,
                format!("there is no stage kind `{kind}`"),
            )
        };
        self.build.stages.get(kind).ok_or_else(unknown)
    }

    fn expand(&self, stage: StageIndex, mut inputs: Inputs) -> Input {
        let planned = &self.build.plan.stages[stage.index()];
        let tasks = guarded(&planned.kind, || {
            let kind = self.kind(&planned.kind)?;
            let files = self.asked[stage.index()]
                .get()
                .map(|asked| &asked.files)
                .into_iter()
                .flatten();
            inputs.files = files
                .map(|(path, file)| (path.clone(), file.digest))
                .collect();
            for id in planned.slots.values().flatten() {
                let producer = self.build.plan.stages.iter().find(|stage| stage.id == *id);
                if let Some(producer) = producer {
                    let artifact = self.kind(&producer.kind)?.spec().output;
                    inputs.artifacts.insert(id.0.clone(), artifact);
                }
            }
            let is_volatile = self.is_volatile(planned)?;
            let task = |order: WorkOrder| {
                let (name, demand, smaller) = (
                    order.name.clone(),
                    order.demand,
                    order.smaller.clone().into(),
                );
                let action = order.into_action(kind.spec());
                let proof = kind.proof(&action.params)?;
                Ok(Task {
                    name,
                    key: action.key(),
                    action: Arc::new(action),
                    demand,
                    smaller,
                    is_volatile,
                    proof,
                })
            };
            kind.expand(&planned.params, &inputs)?
                .into_iter()
                .map(task)
                .collect()
        });
        Input::Expanded { stage, tasks }
    }

    fn probe(&self, job: JobId, part: &PartId, task: &Task) -> Input {
        let Build {
            actions,
            blobs,
            notes,
            last,
            ..
        } = self.build;
        let answer = guarded(&task.action.stage, || {
            let found = Complete {
                actions: *actions,
                blobs: *blobs,
            }
            .find(&task.key)?;
            if let (Found::Hit(result), false) = (&found, task.is_volatile) {
                return Ok(match proof::doubt(&task.proof, result, *blobs, *notes)? {
                    None => Answer::Hit(result.clone()),
                    Some(why) => Answer::Miss(vec![why], None),
                });
            }
            let key = last.key(part);
            let before = key.map(|key| actions.get(&key)).transpose()?.flatten();
            let past = before.as_ref().map(|result| Past {
                took_ms: result.took_ms,
                peak_memory_bytes: result.peak_memory_bytes,
            });
            Ok(Answer::Miss(
                reasons(task, &found, key, before.as_ref()),
                past,
            ))
        });
        Input::Probed { job, answer }
    }

    fn run(
        &self,
        job: JobId,
        stage: StageIndex,
        task: &Task,
        delay: Duration,
        send: &Sender<Vec<Input>>,
    ) -> Input {
        let Build {
            plan,
            actions,
            notes,
            executor,
            cancel,
            ..
        } = self.build;
        let result = guarded(&task.action.stage, || {
            let progress = |done, total, unit| {
                answer(
                    send,
                    Input::Progressed {
                        job,
                        done,
                        total,
                        unit,
                    },
                )
            };
            let monitor =
                JobMonitor::new(&progress, cancel, plan.stages[stage.index()].timeout, delay);
            monitor.wait_for_action_lock()?;
            let turn = match self.turn(task, &monitor)? {
                Turned::Mine(turn) => turn,
                Turned::Made(result) => return Ok(result),
            };
            let begun = Instant::now();
            let ran = monitor.judge(executor.run(&task.action, &task.demand, &monitor))?;
            if let Some(asked) = self.asked[stage.index()].get() {
                asked
                    .files
                    .values()
                    .try_for_each(|file| file.check(*notes, cancel))?;
            }
            let result = ActionResult {
                action: task.action.canonical_text(),
                outputs: ran.outputs,
                took_ms: begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
                peak_memory_bytes: ran.peak_memory_bytes,
            };
            actions.put(&result)?;
            proof::note(&task.proof, &result, *notes)?;
            drop(turn);
            Ok(result)
        });
        Input::Ran { job, result }
    }

    /// Waits until no other kiln does the same work; it may have done it then.
    fn turn(&self, task: &Task, monitor: &JobMonitor) -> Result<Turned> {
        let Build {
            actions,
            blobs,
            notes,
            ..
        } = self.build;
        // Small work is done twice sooner than it is waited for.
        if task.demand.isolation == Isolation::Thread && task.action.origin.is_none() {
            return Ok(Turned::Mine(ActionLock::default()));
        }
        let mut has_waited = false;
        loop {
            match actions.turn(&task.key)? {
                Some(turn) if has_waited && !task.is_volatile => {
                    let found = Complete {
                        actions: *actions,
                        blobs: *blobs,
                    }
                    .get(&task.key)?;
                    return Ok(match found {
                        Some(result)
                            if proof::doubt(&task.proof, &result, *blobs, *notes)?.is_none() =>
                        {
                            Turned::Made(result)
                        }
                        _ => Turned::Mine(turn),
                    });
                }
                Some(turn) => return Ok(Turned::Mine(turn)),
                None => has_waited = true,
            }
            monitor.wait()?;
        }
    }
}

/// What came of waiting.
enum Turned {
    Mine(ActionLock),
    Made(ActionResult),
}

fn answer(send: &Sender<Vec<Input>>, input: Input) {
    send_all(send, vec![input]);
}

/// Sends answers to the loop.
fn send_all(send: &Sender<Vec<Input>>, inputs: Vec<Input>) {
    // The loop ends only when nothing is awaited, so it is there to hear this.
    let _ = send.send(inputs);
}

/// Makes a panic a problem: the loop waits for an answer.
fn guarded<T>(kind: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let literal = panic.downcast_ref::<&str>().copied();
        let text = literal
            .or(panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        Err(Problem::new(
            Code::EnginePanicked,
            format!("stage `{kind}` panicked: {text}"),
        )
        .help(
            "a mistake of kiln, not of the plan: please report it with what `kiln build --log \
             FILE` writes",
        ))
    })
}
