//! A build without thread, file or clock: the effects of a scheduler, answered in any order.

use std::collections::{BTreeMap, BTreeSet};

use kiln::action::{ActionKey, Inputs, Manifest, PartName};
use kiln::base::{Code, Digest, Problem};
use kiln::engine::{
    Built, CompletedStage, Effect, History, Input, JobState, Limits, PastRun, ProbeResult,
    Scheduler, StageDetails, Task,
};
use kiln::events::{Event, Why};
use kiln::plan::Plan;
use kiln::store::ActionResult;

use super::fake;

/// What came of a simulated build.
#[derive(Default)]
pub struct Trace {
    pub events: Vec<Event>,
    pub completed: BTreeMap<String, Manifest>,
    pub runs: Vec<ActionKey>,
    /// What only lacks room at the end, and why it must run.
    pub waiting: Vec<(String, Vec<Why>)>,
    /// Part and attempt.
    pub retried: Vec<(String, u32)>,
}

/// A build of `plan`, where `cached` says what the cache has.
pub struct Simulation<'a> {
    pub plan: &'a Plan,
    pub limits: Limits,
    pub cached: &'a dyn Fn(&Task) -> bool,
    /// Whether an earlier build completed the stage of this name.
    pub remembered: &'a dyn Fn(&str) -> bool,
    /// What is known of the stages from earlier builds.
    pub history: History,
    /// What a part that must run took when it ran last.
    pub past: &'a dyn Fn(&Task) -> Option<PastRun>,
    /// Cancels after so many answers.
    pub cancel_after: Option<usize>,
}

impl Simulation<'_> {
    /// Runs to the end; `pick(n)` chooses which of `n` outstanding answers comes next. Panics where
    /// the scheduler breaks a law.
    pub fn run(&self, mut pick: impl FnMut(usize) -> usize) -> Trace {
        let mut scheduler = Scheduler::new(self.plan, self.limits, self.history.clone());
        let mut trace = Trace::default();
        let mut outstanding: Vec<Effect> = vec![];
        let mut there: BTreeSet<Digest> = BTreeSet::new();
        let mut asked: BTreeSet<ActionKey> = BTreeSet::new();
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
                there.extend(result.outputs.values().map(|part| part.content.digest));
            }
            if let Input::LookedUp {
                completed: Ok(Some(completed)),
                ..
            } = &input
            {
                there.extend(
                    completed
                        .details()
                        .unwrap()
                        .manifest
                        .parts
                        .values()
                        .map(|part| part.content.digest),
                );
            }
            may_begin &= !matches!(input, Input::Cancel);
            for effect in scheduler.step(input) {
                assert!(!finished, "nothing comes after the end");
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
                            "only what ran is tried again"
                        );
                        outstanding.push(effect);
                    }
                    effect => {
                        assert!(
                            may_begin,
                            "nothing begins after a failure or an interruption"
                        );
                        match &effect {
                            Effect::Probe { task, .. } => {
                                assert!(asked.insert(task.key), "a key is probed once")
                            }
                            Effect::Run { task, .. } => {
                                assert!(
                                    !trace.runs.contains(&task.key),
                                    "an action runs at most once"
                                );
                                assert!(
                                    task.action
                                        .inputs
                                        .values()
                                        .all(|input| there.contains(&input.digest))
                                );
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
                "the end comes when every answer is there"
            );
            if finished {
                let Built { completed, parts } = scheduler.into_built();
                for part in parts {
                    if let JobState::Ready { why } = part.state {
                        trace.waiting.push((part.id.to_string(), why));
                    }
                }
                trace.completed = completed
                    .into_iter()
                    .map(|(stage, it)| (stage.0, it.details().unwrap().manifest.clone()))
                    .collect();
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

    /// Whether this attempt is one of those that a flaky part fails.
    fn fails(&self, task: &Task, attempts: &mut BTreeMap<ActionKey, u64>) -> bool {
        let attempt = attempts.entry(task.key).or_default();
        *attempt += 1;
        *attempt <= task.action.params["flaky"].as_u64().unwrap_or(0)
    }

    fn check_limits(&self, outstanding: &[Effect]) {
        let running = outstanding.iter().filter_map(|effect| match effect {
            Effect::Run { task, .. } => Some(task.demand),
            _ => None,
        });
        let (threads, memory) = running.fold((0, 0), |(t, m), demand| {
            (t + demand.threads, m + demand.memory_bytes)
        });
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
                let manifest = expected(self.plan)
                    .remove(id)
                    .filter(|_| (self.remembered)(id));
                let completed = manifest.map(|manifest| StageDetails {
                    parts: manifest
                        .parts
                        .iter()
                        .map(|(name, part)| (name.to_string(), ActionKey(part.content.digest)))
                        .collect(),
                    manifest,
                    tools: BTreeMap::new(),
                });
                Input::LookedUp {
                    stage,
                    completed: completed.map(CompletedStage::new).transpose(),
                }
            }
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

/// What the stages of `plan` give, evaluated one after another without an engine; stages that fail
/// or follow from one that fails are left out.
pub fn expected(plan: &Plan) -> BTreeMap<String, Manifest> {
    let mut all: BTreeMap<String, Manifest> = BTreeMap::new();
    for stage in &plan.stages {
        let mut inputs = Inputs::default();
        let mut is_whole = true;
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
                    None => is_whole = false,
                }
            }
        }
        let mut manifest = Manifest::default();
        for task in fake::tasks(stage, &inputs).unwrap() {
            match fake::outputs(&task.action) {
                Ok(_) if task.action.params["flaky"].as_u64() > Some(stage.retries.into()) => {
                    is_whole = false
                }
                Ok(outputs) => manifest
                    .parts
                    .extend(outputs.into_iter().map(|(out, part)| {
                        (PartName::new(format!("{}/{out}", task.name)).unwrap(), part)
                    })),
                Err(_) => is_whole = false,
            }
        }
        if is_whole {
            all.insert(stage.id.0.clone(), manifest);
        }
    }
    all
}

/// Events as lines of text.
pub fn told(events: &[Event]) -> String {
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
        Event::CompletedStage {
            stage,
            as_before: false,
        } => format!("{stage} sealed\n"),
        Event::CompletedStage { stage, .. } => format!("{stage} sealed as before\n"),
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
