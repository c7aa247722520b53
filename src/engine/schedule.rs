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

use super::room::Room;
use super::sealed::{Piece, check_names};
use super::{
    Answer, Built, BuiltPart, Effect, History, Input, JobId, JobLife, Limits, Sealed, StageIndex,
    StageLife, Task, Whole,
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
    graph: DiGraph<StageLife, ()>,
    index: BTreeMap<&'a StageId, StageIndex>,
    jobs: Vec<Job>,
    by_key: HashMap<ActionKey, JobId>,
    room: Room,
    /// What the last builds say of the time from the end of each stage to the end of the build.
    road_ms: Vec<u64>,
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
    life: JobLife,
    /// What is known of the time from its start to the end of the build.
    road_ms: u64,
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
            .map(|stage| (&stage.id, graph.add_node(StageLife::Waiting)))
            .collect();
        for stage in &plan.stages {
            for giver in stage.dependencies() {
                graph.update_edge(index[giver], index[&stage.id], ());
            }
        }
        Scheduler {
            plan,
            limits,
            road_ms: history.roads(plan, limits.jobs),
            history,
            graph,
            index,
            jobs: vec![],
            by_key: HashMap::new(),
            room: Room::new(limits),
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
            Input::Recalled { stage, sealed } => {
                self.awaited -= 1;
                match sealed {
                    Ok(Some(sealed)) => self.recalled(stage, sealed),
                    Ok(None) if !self.stopping => self.set_stage(stage, StageLife::Expanding),
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
                        let done = JobLife::Done {
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
                self.tell(Event::Progress {
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
                        let done = JobLife::Done {
                            outputs: result.outputs,
                            hit: false,
                            took_ms: result.took_ms,
                        };
                        self.set_job(job, done);
                    }
                    Err(problem) if self.cancelled && problem.is_cancelled() => {
                        self.set_job(job, JobLife::Stopped);
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
            let life = match &job.life {
                JobLife::Ready { .. } if id != first => JobLife::Ready {
                    why: vec![Why::Same {
                        part: first.to_string(),
                    }],
                },
                life => life.clone(),
            };
            BuiltPart {
                id,
                task: job.task.clone(),
                life,
            }
        };
        let parts = claims.into_iter().map(part).collect();
        let mut sealed = BTreeMap::new();
        for (stage, life) in self.plan.stages.iter().zip(self.graph.into_nodes_edges().0) {
            if let StageLife::Sealed(whole) = life.weight {
                sealed.insert(stage.id.clone(), whole);
            }
        }
        Built { sealed, parts }
    }

    fn begin(&mut self) {
        let stages = self
            .plan
            .stages
            .iter()
            .map(|stage| stage.id.to_string())
            .collect();
        self.tell(Event::Begun {
            schema: SCHEMA,
            plan: self.plan.name.clone(),
            stages,
        });
        for stage in self.graph.node_indices() {
            self.recall_if_ready(stage);
        }
    }

    fn recall_if_ready(&mut self, stage: StageIndex) {
        let waits = matches!(self.graph[stage], StageLife::Waiting);
        let is_sealed = |giver| matches!(self.graph[giver], StageLife::Sealed(_));
        if waits
            && !self.stopping
            && self
                .graph
                .neighbors_directed(stage, Incoming)
                .all(is_sealed)
        {
            self.set_stage(stage, StageLife::Recalling);
        }
    }

    fn recalled(&mut self, stage: StageIndex, sealed: Sealed) {
        let (name, parts) = (self.planned(stage).id.to_string(), sealed.parts());
        self.count.hits += parts;
        self.tell(Event::Unchanged { stage: name, parts });
        self.set_stage(stage, StageLife::Sealed(Arc::new(sealed)));
    }

    /// Finds or makes the job of each task, and probes the new ones.
    fn work_on(&mut self, stage: StageIndex, tasks: Vec<Task>) {
        let mut jobs = vec![];
        let mut parts = vec![];
        for (place, mut task) in tasks.into_iter().enumerate() {
            task.demand = self.room.fitted(task.demand);
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
                let road_ms = self.road_ms[stage.index()];
                self.jobs.push(Job {
                    task,
                    life: JobLife::Probing,
                    road_ms,
                    retried: 0,
                    claims: vec![],
                });
            }
            self.jobs[job].claims.push(claim.clone());
            jobs.push((claim, job));
        }
        let open = parts.len();
        self.set_stage(stage, StageLife::Working { parts, open });
        for (claim, job) in jobs {
            if self.jobs[job].life.outputs().is_some() {
                self.hit(&claim);
            }
        }
        self.seal_if_done(stage);
    }

    /// The one function that moves a stage on.
    fn set_stage(&mut self, stage: StageIndex, life: StageLife) {
        let name = self.planned(stage).id.to_string();
        match &life {
            StageLife::Waiting => {}
            StageLife::Recalling => self.ask(Effect::Recall {
                stage,
                givers: self.givers(stage),
            }),
            StageLife::Expanding => match self.inputs(stage) {
                Ok(inputs) => self.ask(Effect::Expand { stage, inputs }),
                Err(problem) => return self.fail_stage(stage, problem),
            },
            StageLife::Working { open, .. } => self.tell(Event::Expanded {
                stage: name,
                parts: *open,
            }),
            StageLife::Sealed(_) => {}
            StageLife::Failed => self.stopping |= !self.limits.keep_going,
            StageLife::Skipped => self.tell(Event::Skipped { stage: name }),
        }
        self.graph[stage] = life;
        let mut takers: Vec<StageIndex> = self.graph.neighbors(stage).collect();
        takers.sort();
        match &self.graph[stage] {
            StageLife::Sealed(_) => takers
                .into_iter()
                .for_each(|taker| self.recall_if_ready(taker)),
            StageLife::Failed | StageLife::Skipped => {
                takers.into_iter().for_each(|taker| self.skip(taker))
            }
            StageLife::Waiting
            | StageLife::Recalling
            | StageLife::Expanding
            | StageLife::Working { .. } => {}
        }
    }

    fn skip(&mut self, stage: StageIndex) {
        if matches!(self.graph[stage], StageLife::Waiting) {
            self.set_stage(stage, StageLife::Skipped);
        }
    }

    fn fail_stage(&mut self, stage: StageIndex, problem: Problem) {
        let part = PartId {
            stage: self.planned(stage).id.to_string(),
            part: String::new(),
        };
        self.count.failed += 1;
        self.tell(Event::Failed { part, problem });
        self.set_stage(stage, StageLife::Failed);
    }

    fn hit(&mut self, claim: &Claim) {
        self.count.hits += 1;
        self.tell(Event::Hit {
            part: self.part_id(claim),
        });
        self.close_part(claim.stage);
    }

    fn close_part(&mut self, stage: StageIndex) {
        if let StageLife::Working { open, .. } = &mut self.graph[stage] {
            *open -= 1;
        }
    }

    fn seal_if_done(&mut self, stage: StageIndex) {
        let StageLife::Working { parts, open: 0 } = &self.graph[stage] else {
            return;
        };
        let pieces = parts.iter().filter_map(|(name, job)| {
            let Job { task, life, .. } = &self.jobs[job.0];
            Some(Piece {
                name,
                key: task.key,
                action: &task.action,
                outputs: life.outputs()?,
            })
        });
        match Whole::of(pieces).and_then(Sealed::new).map(Arc::new) {
            Ok(sealed) => {
                self.effects.push(Effect::Note {
                    stage,
                    sealed: Arc::clone(&sealed),
                });
                let name = self.planned(stage).id.to_string();
                let before = self.history.0.get(&name).and_then(|before| before.gives);
                self.tell(Event::Sealed {
                    as_before: before == Some(sealed.gives()),
                    stage: name,
                });
                self.set_stage(stage, StageLife::Sealed(sealed));
            }
            Err(problem) => self.fail_stage(stage, problem),
        }
    }

    fn finish(&mut self) {
        if self.awaited == 0 {
            let Count { hits, ran, failed } = self.count;
            self.tell(Event::Finished {
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

    fn tell(&mut self, event: Event) {
        self.effects.push(Effect::Tell(event));
    }

    fn planned(&self, stage: StageIndex) -> &'a PlannedStage {
        &self.plan.stages[stage.index()]
    }

    /// The digests of all manifests it takes from, in the order of its slots and tools.
    fn givers(&self, stage: StageIndex) -> Vec<Digest> {
        let sealed = |giver: &StageId| match &self.graph[self.index[giver]] {
            StageLife::Sealed(sealed) => Some(sealed.gives()),
            _ => None,
        };
        self.planned(stage)
            .dependencies()
            .filter_map(sealed)
            .collect()
    }

    /// All it takes from, but for the files of this machine, which the driver knows.
    fn inputs(&self, stage: StageIndex) -> Result<Inputs> {
        let manifest = |giver: &StageId| match &self.graph[self.index[giver]] {
            StageLife::Sealed(sealed) => Ok(sealed.whole()?.manifest.clone()),
            _ => Ok(Manifest::default()),
        };
        let stage = self.planned(stage);
        let mut inputs = Inputs::default();
        for (slot, givers) in &stage.slots {
            let given = givers
                .iter()
                .map(|giver| Ok((giver.to_string(), manifest(giver)?)));
            inputs
                .slots
                .insert(slot.clone(), given.collect::<Result<_>>()?);
        }
        for (tool, giver) in &stage.tools {
            inputs.tools.insert(tool.clone(), manifest(giver)?);
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
