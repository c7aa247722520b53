//! The scheduler: a state machine without threads, files or a clock.
//!
//! When all dependencies of a stage are complete, the stage is looked up. If an earlier build
//! completed it with the same inputs, it is complete at once. Otherwise it expands into parts. Each
//! part is an action; parts with equal keys share one job. A job is first looked up in the cache. A
//! miss waits for resources; the job with the longest critical path starts first. When all parts of
//! a stage are done, the stage is complete. Once a job must run, every stage that waits for some of
//! its inputs is asked whether it must fail by the others. After a failure (without `keep_going`) or
//! `Cancel`, nothing new starts, and the build ends when there is no outstanding request.

mod inputs;
mod jobs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use petgraph::Direction::Incoming;
use petgraph::graph::DiGraph;

use super::completed::CompletedOrder;
use super::pool::ResourcePool;
use super::{
    Built, BuiltPart, CompletedStage, Effect, History, Input, JobId, JobState, Limits, ProbeResult,
    StageDetails, StageIndex, StageState, Task,
};
use crate::action::ActionKey;
use crate::base::{Code, Problem, Result};
use crate::events::{Event, PartId, SCHEMA, Why};
use crate::plan::{Plan, PlannedStage, StageId};

/// The state of one build.
pub struct Scheduler<'a> {
    plan: &'a Plan,
    limits: Limits,
    /// Edges lead from a stage to its consumers; nodes are in the plan's order.
    graph: DiGraph<StageState, ()>,
    index: BTreeMap<&'a StageId, StageIndex>,
    jobs: Vec<Job>,
    by_key: HashMap<ActionKey, JobId>,
    pool: ResourcePool,
    /// For each stage, the estimated time from its end to the end of the build.
    critical_path_ms: Vec<u64>,
    history: History,
    /// The number of requests that the driver has not answered.
    outstanding: usize,
    stopping: bool,
    cancelled: bool,
    /// Whether a job must run: until then, it would take longer to foresee failures than to build.
    has_missed: bool,
    counts: Counts,
    effects: Vec<Effect>,
}

struct Job {
    task: Task,
    state: JobState,
    /// The estimated time from its start to the end of the build.
    critical_path_ms: u64,
    /// The number of retries.
    retries: u32,
    /// The parts that it makes; never empty.
    parts: Vec<StagePart>,
}

/// One part of a stage.
#[derive(Clone)]
struct StagePart {
    stage: StageIndex,
    /// Its index among the stage's orders.
    place: usize,
    name: String,
}

#[derive(Default)]
struct Counts {
    hits: usize,
    ran: usize,
    failed: usize,
}

impl<'a> Scheduler<'a> {
    /// A build of `plan` that has not begun; `history` is of its stages in earlier builds.
    pub fn new(plan: &'a Plan, limits: Limits, history: History) -> Self {
        let mut graph = DiGraph::new();
        let mut index = BTreeMap::new();
        for stage in &plan.stages {
            index.insert(&stage.id, graph.add_node(StageState::Waiting));
        }
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
            outstanding: 0,
            stopping: false,
            cancelled: false,
            has_missed: false,
            counts: Counts::default(),
            effects: vec![],
        }
    }

    /// Updates the state, and returns what to do, in order.
    pub fn step(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Begin => self.begin(),
            Input::LookedUp { stage, completed } => {
                self.outstanding -= 1;
                match completed {
                    Ok(Some(completed)) => self.looked_up(stage, completed),
                    Ok(None) if !self.stopping => self.set_stage(stage, StageState::Expanding),
                    Ok(None) => {}
                    Err(problem) => self.fail_stage(stage, problem),
                }
            }
            Input::Foreseen { stage, result } => {
                self.outstanding -= 1;
                if let (Err(problem), StageState::Waiting) = (result, &self.graph[stage]) {
                    self.fail_stage(stage, problem);
                }
            }
            Input::Expanded { stage, tasks } => {
                self.outstanding -= 1;
                match tasks {
                    Ok(tasks) => self.expanded(stage, tasks),
                    Err(problem) => self.fail_stage(stage, problem),
                }
            }
            Input::Probed { job, result } => {
                self.outstanding -= 1;
                match result {
                    Ok(ProbeResult::Hit(result)) => {
                        let done = JobState::Done {
                            outputs: result.outputs,
                            hit: true,
                            took_ms: result.took_ms,
                        };
                        self.set_job(job, done);
                    }
                    Ok(ProbeResult::Miss(why, past)) => self.missed(job, why, past),
                    Err(problem) => self.fail_job(job, problem),
                }
            }
            Input::Progressed {
                job,
                done,
                total,
                unit,
            } => {
                let part = self.first_part(job);
                self.emit(Event::Progress {
                    part,
                    done,
                    total,
                    unit,
                });
            }
            Input::Ran { job, result } => {
                self.outstanding -= 1;
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
        self.start_jobs();
        self.finish();
        std::mem::take(&mut self.effects)
    }

    /// The result of the build.
    pub fn into_built(self) -> Built {
        let mut jobs: Vec<(&StagePart, &Job)> = vec![];
        for job in &self.jobs {
            for part in &job.parts {
                jobs.push((part, job));
            }
        }
        jobs.sort_by_key(|(part, _)| (part.stage, part.place));
        let mut parts = vec![];
        for (part, job) in jobs {
            let (id, first) = (self.part_id(part), self.part_id(&job.parts[0]));
            let state = match &job.state {
                // The reasons are those of the job's first part. Another part may have had another
                // action in the last build.
                JobState::Ready { .. } if id != first => JobState::Ready {
                    why: vec![Why::Same {
                        part: first.to_string(),
                    }],
                },
                state => state.clone(),
            };
            parts.push(BuiltPart {
                id,
                task: job.task.clone(),
                state,
            });
        }
        let mut completed = BTreeMap::new();
        for stage in self.graph.node_indices() {
            if let StageState::Completed(details) = &self.graph[stage] {
                completed.insert(self.planned(stage).id.clone(), Arc::clone(details));
            }
        }
        Built { completed, parts }
    }

    fn begin(&mut self) {
        let mut stages = vec![];
        for stage in &self.plan.stages {
            stages.push(stage.id.to_string());
        }
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
        if self.stopping || !matches!(self.graph[stage], StageState::Waiting) {
            return;
        }
        for producer in self.graph.neighbors_directed(stage, Incoming) {
            if !matches!(self.graph[producer], StageState::Completed(_)) {
                return;
            }
        }
        self.set_stage(stage, StageState::LookingUp);
    }

    fn looked_up(&mut self, stage: StageIndex, completed: CompletedStage) {
        let (name, parts) = (self.planned(stage).id.to_string(), completed.parts());
        self.counts.hits += parts;
        self.emit(Event::Unchanged { stage: name, parts });
        self.set_stage(stage, StageState::Completed(Arc::new(completed)));
    }

    fn expanded(&mut self, stage: StageIndex, tasks: Vec<Task>) {
        if let Err(problem) = check_names(&tasks) {
            self.fail_stage(stage, problem);
        } else if !self.stopping {
            self.add_jobs(stage, tasks);
        }
    }

    /// Finds or creates the job of each task, and probes the new ones.
    fn add_jobs(&mut self, stage: StageIndex, tasks: Vec<Task>) {
        let mut stage_parts = vec![];
        let mut parts = vec![];
        for (place, mut task) in tasks.into_iter().enumerate() {
            task.demand = self.pool.clamp_threads(task.demand);
            let name = task.name.clone();
            let part = StagePart { stage, place, name };
            let new_id = JobId(self.jobs.len());
            let id = *self.by_key.entry(task.key).or_insert(new_id);
            parts.push((task.name.clone(), id));
            if id == new_id {
                self.request(Effect::Probe {
                    job: id,
                    part: self.part_id(&part),
                    task: task.clone(),
                });
                self.jobs.push(Job {
                    task,
                    state: JobState::Probing,
                    critical_path_ms: self.critical_path_ms[stage.index()],
                    retries: 0,
                    parts: vec![],
                });
            }
            self.jobs[id.0].parts.push(part.clone());
            stage_parts.push((part, id));
        }
        let open = parts.len();
        self.set_stage(stage, StageState::Working { parts, open });
        for (part, id) in stage_parts {
            if self.jobs[id.0].state.outputs().is_some() {
                self.hit(&part);
            }
        }
        self.complete_if_done(stage);
    }

    /// Changes the state of a stage, with all consequences. Nothing else changes it.
    fn set_stage(&mut self, stage: StageIndex, state: StageState) {
        let name = self.planned(stage).id.to_string();
        match &state {
            StageState::Waiting => {}
            StageState::LookingUp => self.request(Effect::LookUp {
                stage,
                producers: self.producers(stage),
            }),
            StageState::Expanding => match self.inputs(stage) {
                Ok(inputs) => self.request(Effect::Expand { stage, inputs }),
                Err(problem) => return self.fail_stage(stage, problem),
            },
            StageState::Working { open, .. } => self.emit(Event::Expanded {
                stage: name,
                parts: *open,
            }),
            StageState::Completed(_) => {}
            StageState::Failed => self.stopping |= !self.limits.keep_going,
            StageState::Skipped => self.emit(Event::Skipped { stage: name }),
        }
        self.graph[stage] = state;
        let mut consumers: Vec<StageIndex> = self.graph.neighbors(stage).collect();
        consumers.sort();
        match &self.graph[stage] {
            StageState::Completed(_) => {
                for consumer in consumers {
                    self.look_up_if_ready(consumer);
                    if self.has_missed {
                        self.foresee(consumer);
                    }
                }
            }
            StageState::Failed | StageState::Skipped => {
                for consumer in consumers {
                    self.skip(consumer);
                }
            }
            StageState::Waiting
            | StageState::LookingUp
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
        self.counts.failed += 1;
        self.emit(Event::Failed { part, problem });
        self.set_stage(stage, StageState::Failed);
    }

    fn hit(&mut self, part: &StagePart) {
        self.counts.hits += 1;
        self.emit(Event::Hit {
            part: self.part_id(part),
        });
        self.close_part(part.stage);
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
        match self.completed_stage(parts) {
            Ok(completed) => {
                let completed = Arc::new(completed);
                self.effects.push(Effect::Note {
                    stage,
                    completed: Arc::clone(&completed),
                });
                let name = self.planned(stage).id.to_string();
                let as_before = match self.history.0.get(&name) {
                    Some(history) => history.output == Some(completed.output()),
                    None => false,
                };
                self.emit(Event::Completed {
                    as_before,
                    stage: name,
                });
                self.set_stage(stage, StageState::Completed(completed));
            }
            Err(problem) => self.fail_stage(stage, problem),
        }
    }

    fn completed_stage(&self, parts: &[(String, JobId)]) -> Result<CompletedStage> {
        let mut orders = vec![];
        for (name, job) in parts {
            let Job { task, state, .. } = &self.jobs[job.0];
            if let Some(outputs) = state.outputs() {
                orders.push(CompletedOrder {
                    name,
                    key: task.key,
                    action: &task.action,
                    outputs,
                });
            }
        }
        CompletedStage::new(StageDetails::new(&orders)?)
    }

    fn finish(&mut self) {
        if self.outstanding == 0 {
            let Counts { hits, ran, failed } = self.counts;
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
    fn request(&mut self, effect: Effect) {
        self.outstanding += 1;
        self.effects.push(effect);
    }

    fn emit(&mut self, event: Event) {
        self.effects.push(Effect::Emit(event));
    }

    fn planned(&self, stage: StageIndex) -> &'a PlannedStage {
        &self.plan.stages[stage.index()]
    }

    fn part_id(&self, part: &StagePart) -> PartId {
        PartId {
            stage: self.planned(part.stage).id.to_string(),
            part: part.name.clone(),
        }
    }
}

/// Refuses two orders with the same name, since reasons and records are stored by name.
fn check_names(tasks: &[Task]) -> Result<()> {
    let mut names = BTreeSet::new();
    for task in tasks {
        if !names.insert(&task.name) {
            let message = format!("two orders are called `{}`", task.name);
            return Err(Problem::new(Code::EngineSameOrder, message).help(
                "a mistake of the stage kind: each order of a stage needs a name of its own",
            ));
        }
    }
    Ok(())
}
