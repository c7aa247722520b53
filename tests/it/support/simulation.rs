//! A simulated build without threads, files or clock: the effects of a scheduler are answered in
//! any order.

use std::collections::{BTreeMap, BTreeSet};

use kiln::action::{ActionKey, Inputs, Manifest, PartName, Stage};
use kiln::base::{Code, Digest, Problem};
use kiln::engine::{
    Built, CompletedStage, Effect, History, Input, JobState, Limits, PastRun, ProbeResult,
    Scheduler, StageDetails, Task,
};
use kiln::events::{Event, Why};
use kiln::plan::Plan;
use kiln::store::ActionResult;

use super::fake::{self, Fake};

/// The result of a simulated build.
#[derive(Default)]
pub struct Trace {
    pub events: Vec<Event>,
    pub completed: BTreeMap<String, Manifest>,
    pub runs: Vec<ActionKey>,
    /// Parts that were ready but did not fit the limits, and why they must run.
    pub waiting: Vec<(String, Vec<Why>)>,
    /// Part and attempt.
    pub retried: Vec<(String, u32)>,
}

/// A build of `plan`; `cached` decides which tasks are cached.
pub struct Simulation<'a> {
    pub plan: &'a Plan,
    pub limits: Limits,
    pub cached: &'a dyn Fn(&Task) -> bool,
    /// Whether an earlier build completed the stage of this name.
    pub remembered: &'a dyn Fn(&str) -> bool,
    /// Times and outputs of the stages in earlier builds.
    pub history: History,
    /// Time and memory of the last run of a task that must run.
    pub past: &'a dyn Fn(&Task) -> Option<PastRun>,
    /// Cancels after this number of answers.
    pub cancel_after: Option<usize>,
}

impl Simulation<'_> {
    /// Runs to the end; `pick(n)` chooses which of `n` outstanding effects is answered next. Panics
    /// if the scheduler violates an invariant.
    pub fn run(&self, mut pick: impl FnMut(usize) -> usize) -> Trace {
        let mut scheduler = Scheduler::new(self.plan, self.limits, self.history.clone());
        let mut trace = Trace::default();
        let mut outstanding: Vec<Effect> = vec![];
        let mut available: BTreeSet<Digest> = BTreeSet::new();
        let mut probed: BTreeSet<ActionKey> = BTreeSet::new();
        let mut attempts = BTreeMap::new();
        let (mut finished, mut may_begin, mut answered) = (false, true, 0);
        let mut input = Input::Begin;
        loop {
            if let Input::Probed {
                result: Ok(ProbeResult::Hit(result)),
                ..
            }
            | Input::Ran {
                result: Ok(result), ..
            } = &input
            {
                available.extend(result.outputs.values().map(|part| part.content.digest));
            }
            if let Input::LookedUp {
                completed: Ok(Some(completed)),
                ..
            } = &input
            {
                let details = completed.details().unwrap();
                for part in details.manifest.parts.values() {
                    available.insert(part.content.digest);
                }
            }
            may_begin &= !matches!(input, Input::Cancel);
            for effect in scheduler.step(input) {
                assert!(!finished, "no effect follows `Finish`");
                match effect {
                    Effect::Emit(event) => {
                        may_begin &=
                            self.limits.keep_going || !matches!(event, Event::Failed { .. });
                        if let Event::Retried { part, attempt, .. } = &event {
                            trace.retried.push((part.to_string(), *attempt));
                        }
                        trace.events.push(event);
                    }
                    Effect::Note { .. } => {}
                    Effect::Finish => finished = true,
                    Effect::Run {
                        delay, ref task, ..
                    } if !delay.is_zero() => {
                        assert!(
                            trace.runs.contains(&task.key),
                            "only a task that ran is retried"
                        );
                        outstanding.push(effect);
                    }
                    effect => {
                        assert!(
                            may_begin,
                            "nothing starts after a failure or a cancellation"
                        );
                        match &effect {
                            Effect::Probe { task, .. } => {
                                assert!(probed.insert(task.key), "a key is probed once")
                            }
                            Effect::Run { task, .. } => {
                                assert!(
                                    !trace.runs.contains(&task.key),
                                    "an action runs at most once"
                                );
                                for input in task.action.inputs.values() {
                                    assert!(available.contains(&input.digest));
                                }
                                trace.runs.push(task.key);
                            }
                            _ => {}
                        }
                        outstanding.push(effect);
                    }
                }
            }
            self.check_limits(&outstanding);
            assert_eq!(
                finished,
                outstanding.is_empty(),
                "the build finishes when every effect is answered"
            );
            if finished {
                let Built { completed, parts } = scheduler.into_built();
                for part in parts {
                    if let JobState::Ready { why } = part.state {
                        trace.waiting.push((part.id.to_string(), why));
                    }
                }
                for (stage, completed) in completed {
                    let manifest = completed.details().unwrap().manifest.clone();
                    trace.completed.insert(stage.0, manifest);
                }
                return trace;
            }
            input = if self.cancel_after == Some(answered) && answered < usize::MAX && may_begin {
                answered += 1;
                Input::Cancel
            } else {
                answered += 1;
                let effect = outstanding.remove(pick(outstanding.len()));
                match &effect {
                    Effect::Run { job, task, .. } if self.fails(task, &mut attempts) => {
                        Input::Ran {
                            job: *job,
                            result: Err(Problem::new(Code::of("test::flaky"), "told to")),
                        }
                    }
                    _ => self.answer(effect),
                }
            };
        }
    }

    /// Counts an attempt of a flaky part and returns whether it fails.
    fn fails(&self, task: &Task, attempts: &mut BTreeMap<ActionKey, u64>) -> bool {
        let attempt = attempts.entry(task.key).or_default();
        *attempt += 1;
        *attempt <= task.action.params["flaky"].as_u64().unwrap_or(0)
    }

    fn check_limits(&self, outstanding: &[Effect]) {
        let (mut threads, mut memory) = (0, 0);
        for effect in outstanding {
            if let Effect::Run { task, .. } = effect {
                threads += task.demand.threads;
                memory += task.demand.memory_bytes;
            }
        }
        assert!(
            threads <= self.limits.jobs && memory <= self.limits.memory_bytes,
            "{threads} threads, {memory} B"
        );
    }

    fn answer(&self, effect: Effect) -> Input {
        let result = |task: &Task| {
            fake::outputs(&task.action).map(|outputs| ActionResult {
                action: task.action.canonical_text(),
                outputs,
                took_ms: 7,
                peak_memory_bytes: None,
            })
        };
        match effect {
            Effect::LookUp { stage, .. } => {
                let id = &self.plan.stages[stage.index()].id.0;
                let manifest = match expected(self.plan).remove(id) {
                    Some(manifest) if (self.remembered)(id) => manifest,
                    _ => {
                        let completed = Ok(None);
                        return Input::LookedUp { stage, completed };
                    }
                };
                let mut parts = vec![];
                for (name, part) in &manifest.parts {
                    parts.push((name.to_string(), ActionKey(part.content.digest)));
                }
                let completed = CompletedStage::new(StageDetails {
                    parts,
                    manifest,
                    tools: BTreeMap::new(),
                });
                Input::LookedUp {
                    stage,
                    completed: completed.map(Some),
                }
            }
            Effect::Foresee { stage, inputs } => Input::Foreseen {
                stage,
                result: Fake.foresee(&self.plan.stages[stage.index()].params, &inputs),
            },
            Effect::Expand { stage, inputs } => Input::Expanded {
                stage,
                tasks: fake::tasks(&self.plan.stages[stage.index()], &inputs),
            },
            Effect::Probe { job, task, .. } if (self.cached)(&task) => Input::Probed {
                job,
                result: result(&task).map(ProbeResult::Hit),
            },
            Effect::Probe { job, task, .. } => Input::Probed {
                job,
                result: Ok(ProbeResult::Miss(vec![], (self.past)(&task))),
            },
            Effect::Run { job, task, .. } => Input::Ran {
                job,
                result: result(&task),
            },
            Effect::Note { .. } | Effect::Emit(_) | Effect::Finish => {
                unreachable!("needs no answer")
            }
        }
    }
}

/// The outputs of the stages of `plan`, evaluated in order without an engine. Stages that fail, and
/// those that depend on them, are missing.
pub fn expected(plan: &Plan) -> BTreeMap<String, Manifest> {
    let mut all: BTreeMap<String, Manifest> = BTreeMap::new();
    for stage in &plan.stages {
        let mut inputs = Inputs::default();
        let mut is_complete = true;
        for (slot, producers) in &stage.slots {
            for producer in producers {
                match all.get(&producer.0) {
                    Some(manifest) => {
                        inputs
                            .slots
                            .entry(slot.clone())
                            .or_default()
                            .push((producer.0.clone(), manifest.clone()));
                    }
                    None => is_complete = false,
                }
            }
        }
        let mut manifest = Manifest::default();
        for task in fake::tasks(stage, &inputs).unwrap() {
            match fake::outputs(&task.action) {
                Ok(_) if task.action.params["flaky"].as_u64() > Some(stage.retries.into()) => {
                    is_complete = false
                }
                Ok(outputs) => {
                    for (out, part) in outputs {
                        let name = PartName::new(format!("{}/{out}", task.name)).unwrap();
                        manifest.parts.insert(name, part);
                    }
                }
                Err(_) => is_complete = false,
            }
        }
        if is_complete {
            all.insert(stage.id.0.clone(), manifest);
        }
    }
    all
}

/// Events as lines of text.
pub fn event_lines(events: &[Event]) -> String {
    let line = |event: &Event| match event {
        Event::Begun { .. } => String::new(),
        Event::Expanded { stage, parts } => format!("{stage} has {parts}\n"),
        Event::Unchanged { stage, parts } => format!("{stage} unchanged, {parts}\n"),
        Event::Hit { part } => format!("{part} hit\n"),
        Event::Started { part, .. } => format!("{part} starts\n"),
        Event::Progress {
            part,
            done,
            total,
            unit,
        } => format!("{part} {done}/{total} {unit}\n"),
        Event::Retried {
            part,
            attempt,
            problem,
        } => format!("{part} retried after {attempt}: {}\n", problem.code),
        Event::Done { part, .. } => format!("{part} done\n"),
        Event::Failed { part, problem } => format!("{part} failed: {}\n", problem.code),
        Event::Completed {
            stage,
            as_before: false,
        } => format!("{stage} completed\n"),
        Event::Completed { stage, .. } => format!("{stage} completed as before\n"),
        Event::Skipped { stage } => format!("{stage} skipped\n"),
        Event::Finished {
            hits,
            ran,
            failed,
            cancelled,
        } => {
            let end = if *cancelled { ", cancelled" } else { "" };
            format!("{hits} hits, {ran} ran, {failed} failed{end}\n")
        }
    };
    events.iter().map(line).collect()
}
