//! Decides what runs when: a state machine without thread, file or clock.
//!
//! Once every stage that a stage takes from is sealed, an earlier build may have completed it from
//! the very same: then it is sealed at once. Else it expands into parts. Each part is an action;
//! parts with equal keys share one job. A job is probed first. A miss waits for room, the one with
//! the longest road behind it first. When all parts of a stage are done it is sealed, and others go
//! on. After a failure (unless told to keep going) or `Cancel` nothing new begins; the end comes
//! when every answer asked for is there.

mod jobs;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use petgraph::Direction::Incoming;
use petgraph::graph::DiGraph;

use super::completed::{CompletedOrder, check_names};
use super::pool::ResourcePool;
use super::{
    Answer, Built, BuiltPart, CompletedStage, Effect, History, Input, JobId, JobState, Limits,
    StageDetails, StageIndex, StageState, Task,
};
use crate::action::{ActionKey, Inputs, Manifest};
use crate::base::{Digest, Problem, Result};
use crate::events::{Event, PartId, SCHEMA, Why};
use crate::plan::{Plan, PlannedStage, StageId};

/// The state of one build.
pub struct Scheduler<'a> {
    plan: &'a Plan,
    limits: Limits,
    /// Edges lead from a stage to those that take from it; nodes stand in the plan's order.
    graph: DiGraph<StageState, ()>,
    index: BTreeMap<&'a StageId, StageIndex>,
    jobs: Vec<Job>,
    by_key: HashMap<ActionKey, JobId>,
    pool: ResourcePool,
    /// What the last builds say of the time from the end of each stage to the end of the build.
    critical_path_ms: Vec<u64>,
    history: History,
    /// Answers that the driver owes.
    awaited: usize,
    stopping: bool,
    cancelled: bool,
    count: Count,
    effects: Vec<Effect>,
}

struct Job {
    task: Task,
    state: JobState,
    /// What is known of the time from its start to the end of the build.
    critical_path_ms: u64,
    /// How often it was tried again.
    retried: u32,
    /// Who wants it; never empty.
    claims: Vec<Claim>,
}

/// A part that a job makes.
#[derive(Clone)]
struct Claim {
    stage: StageIndex,
    /// Where it stands among the stage's orders.
    place: usize,
    name: String,
}

#[derive(Default)]
struct Count {
    hits: usize,
    ran: usize,
    failed: usize,
}

impl<'a> Scheduler<'a> {
    /// A build of `plan` that has not begun; `history` is what is known of its stages from earlier
    /// ones.
    pub fn new(plan: &'a Plan, limits: Limits, history: History) -> Self {
        let mut graph = DiGraph::new();
        let index: BTreeMap<_, _> = plan
            .stages
            .iter()
            .map(|stage| (&stage.id, graph.add_node(StageState::Waiting)))
            .collect();
        for stage in &plan.stages {
            for producer in stage.dependencies() {
                graph.update_edge(index[producer], index[&stage.id], ());
            }
        }
        Scheduler {
            plan,
            limits,
            critical_path_ms: history.critical_paths(plan, limits.jobs),
            history,
            graph,
            index,
            jobs: vec![],
            by_key: HashMap::new(),
            pool: ResourcePool::new(limits),
            awaited: 0,
            stopping: false,
            cancelled: false,
            count: Count::default(),
            effects: vec![],
        }
    }

    /// Takes in what happened and says what to do, in order.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Begin => self.begin(),
            Input::LookedUp { stage, completed } => {
                self.awaited -= 1;
                match completed {
                    Ok(Some(completed)) => self.looked_up(stage, completed),
                    Ok(None) if !self.stopping => self.set_stage(stage, StageState::Expanding),
                    Ok(None) => {}
                    Err(problem) => self.fail_stage(stage, problem),
                }
            }
            Input::Expanded { stage, tasks } => {
                self.awaited -= 1;
                let checked = tasks.and_then(|tasks| check_names(&tasks).map(|()| tasks));
                match checked {
                    Ok(tasks) if !self.stopping => self.work_on(stage, tasks),
                    Ok(_) => {}
                    Err(problem) => self.fail_stage(stage, problem),
                }
            }
            Input::Probed { job, answer } => {
                self.awaited -= 1;
                match answer {
                    Ok(Answer::Hit(result)) => {
                        let done = JobState::Done {
                            outputs: result.outputs,
                            hit: true,
                            took_ms: result.took_ms,
                        };
                        self.set_job(job, done);
                    }
                    Ok(Answer::Miss(why, past)) => self.missed(job, why, past),
                    Err(problem) => self.fail_job(job, problem),
                }
            }
            Input::Progressed {
                job,
                done,
                total,
                unit,
            } => {
                let part = self.part(job);
                self.emit(Event::Progress {
                    part,
                    done,
                    total,
                    unit,
                });
            }
            Input::Ran { job, result } => {
                self.awaited -= 1;
                match result {
                    Ok(result) => {
                        let done = JobState::Done {
                            outputs: result.outputs,
                            hit: false,
                            took_ms: result.took_ms,
                        };
                        self.set_job(job, done);
                    }
                    Err(problem) if self.cancelled && problem.is_cancelled() => {
                        self.set_job(job, JobState::Stopped);
                    }
                    Err(problem) if self.may_retry(job) => self.retry(job, problem),
                    Err(problem) => self.fail_job(job, problem),
                }
            }
            Input::Cancel => (self.stopping, self.cancelled) = (true, true),
        }
        self.admit();
        self.finish();
        std::mem::take(&mut self.effects)
    }

    /// What came of the build.
    pub fn into_built(self) -> Built {
        let claims = self
            .jobs
            .iter()
            .flat_map(|job| job.claims.iter().map(move |claim| (claim, job)));
        let mut claims: Vec<(&Claim, &Job)> = claims.collect();
        claims.sort_by_key(|(claim, _)| (claim.stage, claim.place));
        let part = |(claim, job): (&Claim, &Job)| {
            let (id, first) = (self.part_id(claim), self.part_id(&job.claims[0]));
            // The cache was asked why for the first that claimed it; another part was another
            // before.
            let state = match &job.state {
                JobState::Ready { .. } if id != first => JobState::Ready {
                    why: vec![Why::Same {
                        part: first.to_string(),
                    }],
                },
                state => state.clone(),
            };
            BuiltPart {
                id,
                task: job.task.clone(),
                state,
            }
        };
        let parts = claims.into_iter().map(part).collect();
        let mut completed = BTreeMap::new();
        for (stage, state) in self.plan.stages.iter().zip(self.graph.into_nodes_edges().0) {
            if let StageState::CompletedStage(details) = state.weight {
                completed.insert(stage.id.clone(), details);
            }
        }
        Built { completed, parts }
    }

    fn begin(&mut self) {
        let stages = self
            .plan
            .stages
            .iter()
            .map(|stage| stage.id.to_string())
            .collect();
        self.emit(Event::Begun {
            schema: SCHEMA,
            plan: self.plan.name.clone(),
            stages,
        });
        for stage in self.graph.node_indices() {
            self.look_up_if_ready(stage);
        }
    }

    fn look_up_if_ready(&mut self, stage: StageIndex) {
        let waits = matches!(self.graph[stage], StageState::Waiting);
        let is_completed = |producer| matches!(self.graph[producer], StageState::CompletedStage(_));
        if waits
            && !self.stopping
            && self
                .graph
                .neighbors_directed(stage, Incoming)
                .all(is_completed)
        {
            self.set_stage(stage, StageState::Recalling);
        }
    }

    fn looked_up(&mut self, stage: StageIndex, completed: CompletedStage) {
        let (name, parts) = (self.planned(stage).id.to_string(), completed.parts());
        self.count.hits += parts;
        self.emit(Event::Unchanged { stage: name, parts });
        self.set_stage(stage, StageState::CompletedStage(Arc::new(completed)));
    }

    /// Finds or makes the job of each task, and probes the new ones.
    fn work_on(&mut self, stage: StageIndex, tasks: Vec<Task>) {
        let mut jobs = vec![];
        let mut parts = vec![];
        for (place, mut task) in tasks.into_iter().enumerate() {
            task.demand = self.pool.fitted(task.demand);
            let claim = Claim {
                stage,
                place,
                name: task.name.clone(),
            };
            parts.push((
                task.name.clone(),
                *self
                    .by_key
                    .entry(task.key)
                    .or_insert(JobId(self.jobs.len())),
            ));
            let JobId(job) = parts[place].1;
            if job == self.jobs.len() {
                self.ask(Effect::Probe {
                    job: JobId(job),
                    part: self.part_id(&claim),
                    task: task.clone(),
                });
                let critical_path_ms = self.critical_path_ms[stage.index()];
                self.jobs.push(Job {
                    task,
                    state: JobState::Probing,
                    critical_path_ms,
                    retried: 0,
                    claims: vec![],
                });
            }
            self.jobs[job].claims.push(claim.clone());
            jobs.push((claim, job));
        }
        let open = parts.len();
        self.set_stage(stage, StageState::Working { parts, open });
        for (claim, job) in jobs {
            if self.jobs[job].state.outputs().is_some() {
                self.hit(&claim);
            }
        }
        self.complete_if_done(stage);
    }

    /// The one function that moves a stage on.
    fn set_stage(&mut self, stage: StageIndex, state: StageState) {
        let name = self.planned(stage).id.to_string();
        match &state {
            StageState::Waiting => {}
            StageState::Recalling => self.ask(Effect::LookUp {
                stage,
                producers: self.producers(stage),
            }),
            StageState::Expanding => match self.inputs(stage) {
                Ok(inputs) => self.ask(Effect::Expand { stage, inputs }),
                Err(problem) => return self.fail_stage(stage, problem),
            },
            StageState::Working { open, .. } => self.emit(Event::Expanded {
                stage: name,
                parts: *open,
            }),
            StageState::CompletedStage(_) => {}
            StageState::Failed => self.stopping |= !self.limits.keep_going,
            StageState::Skipped => self.emit(Event::Skipped { stage: name }),
        }
        self.graph[stage] = state;
        let mut consumers: Vec<StageIndex> = self.graph.neighbors(stage).collect();
        consumers.sort();
        match &self.graph[stage] {
            StageState::CompletedStage(_) => consumers
                .into_iter()
                .for_each(|consumer| self.look_up_if_ready(consumer)),
            StageState::Failed | StageState::Skipped => consumers
                .into_iter()
                .for_each(|consumer| self.skip(consumer)),
            StageState::Waiting
            | StageState::Recalling
            | StageState::Expanding
            | StageState::Working { .. } => {}
        }
    }

    fn skip(&mut self, stage: StageIndex) {
        if matches!(self.graph[stage], StageState::Waiting) {
            self.set_stage(stage, StageState::Skipped);
        }
    }

    fn fail_stage(&mut self, stage: StageIndex, problem: Problem) {
        let part = PartId {
            stage: self.planned(stage).id.to_string(),
            part: String::new(),
        };
        self.count.failed += 1;
        self.emit(Event::Failed { part, problem });
        self.set_stage(stage, StageState::Failed);
    }

    fn hit(&mut self, claim: &Claim) {
        self.count.hits += 1;
        self.emit(Event::Hit {
            part: self.part_id(claim),
        });
        self.close_part(claim.stage);
    }

    fn close_part(&mut self, stage: StageIndex) {
        if let StageState::Working { open, .. } = &mut self.graph[stage] {
            *open -= 1;
        }
    }

    fn complete_if_done(&mut self, stage: StageIndex) {
        let StageState::Working { parts, open: 0 } = &self.graph[stage] else {
            return;
        };
        let parts = parts.iter().filter_map(|(name, job)| {
            let Job { task, state, .. } = &self.jobs[job.0];
            Some(CompletedOrder {
                name,
                key: task.key,
                action: &task.action,
                outputs: state.outputs()?,
            })
        });
        match StageDetails::of(parts)
            .and_then(CompletedStage::new)
            .map(Arc::new)
        {
            Ok(completed) => {
                self.effects.push(Effect::Note {
                    stage,
                    completed: Arc::clone(&completed),
                });
                let name = self.planned(stage).id.to_string();
                let before = self.history.0.get(&name).and_then(|before| before.output);
                self.emit(Event::CompletedStage {
                    as_before: before == Some(completed.output()),
                    stage: name,
                });
                self.set_stage(stage, StageState::CompletedStage(completed));
            }
            Err(problem) => self.fail_stage(stage, problem),
        }
    }

    fn finish(&mut self) {
        if self.awaited == 0 {
            let Count { hits, ran, failed } = self.count;
            self.emit(Event::Finished {
                hits,
                ran,
                failed,
                cancelled: self.cancelled,
            });
            self.effects.push(Effect::Finish);
        }
    }

    /// Adds an effect that the driver answers.
    fn ask(&mut self, effect: Effect) {
        self.awaited += 1;
        self.effects.push(effect);
    }

    fn emit(&mut self, event: Event) {
        self.effects.push(Effect::Emit(event));
    }

    fn planned(&self, stage: StageIndex) -> &'a PlannedStage {
        &self.plan.stages[stage.index()]
    }

    /// The digests of all manifests it takes from, in the order of its slots and tools.
    fn producers(&self, stage: StageIndex) -> Vec<Digest> {
        let completed = |producer: &StageId| match &self.graph[self.index[producer]] {
            StageState::CompletedStage(completed) => Some(completed.output()),
            _ => None,
        };
        self.planned(stage)
            .dependencies()
            .filter_map(completed)
            .collect()
    }

    /// All it takes from, but for the files of this machine, which the driver knows.
    fn inputs(&self, stage: StageIndex) -> Result<Inputs> {
        let manifest = |producer: &StageId| match &self.graph[self.index[producer]] {
            StageState::CompletedStage(completed) => Ok(completed.details()?.manifest.clone()),
            _ => Ok(Manifest::default()),
        };
        let stage = self.planned(stage);
        let mut inputs = Inputs::default();
        for (slot, producers) in &stage.slots {
            let given = producers
                .iter()
                .map(|producer| Ok((producer.to_string(), manifest(producer)?)));
            inputs
                .slots
                .insert(slot.clone(), given.collect::<Result<_>>()?);
        }
        for (tool, producer) in &stage.tools {
            inputs.tools.insert(tool.clone(), manifest(producer)?);
        }
        Ok(inputs)
    }

    fn part_id(&self, claim: &Claim) -> PartId {
        PartId {
            stage: self.planned(claim.stage).id.to_string(),
            part: claim.name.clone(),
        }
    }
}
