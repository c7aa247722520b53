//! The lives of jobs: what is done about each part that no earlier build completed.

use std::cmp::Reverse;
use std::time::Duration;

use super::super::{Effect, JobId, JobState, Past, StageState};
use super::Scheduler;
use crate::action::{Isolation, Smaller};
use crate::base::{Code, Problem, bytes};
use crate::events::{Event, PartId, Why};

impl Scheduler<'_> {
    /// A job must run, unless it never could.
    pub(super) fn missed(&mut self, id: JobId, why: Vec<Why>, past: Option<Past>) {
        let job = &mut self.jobs[id.0];
        job.critical_path_ms += past.map_or(0, |past| past.took_ms);
        // What it took is a better guess than what its stage thinks; a tenth more, since no two
        // runs are the same. But not more than there is: what fitted once is let in, alone
        // if need be.
        if let (Isolation::Process, Some(peak)) = (
            job.task.demand.isolation,
            past.and_then(|past| past.peak_memory_bytes),
        ) {
            job.task.demand.memory_bytes = peak
                .saturating_add(peak / 10)
                .min(self.limits.memory_bytes.max(peak));
        }
        if self.pool.could_hold(&self.jobs[id.0].task.demand) {
            self.set_job(id, JobState::Ready { why });
        } else {
            self.fail_job(id, self.too_large(id));
        }
    }

    pub(super) fn may_retry(&self, id: JobId) -> bool {
        let job = &self.jobs[id.0];
        !self.stopping && job.retried < self.planned(job.claims[0].stage).retries
    }

    /// Runs it again, after a while that doubles each time. It keeps its room.
    pub(super) fn retry(&mut self, id: JobId, problem: Problem) {
        let job = &mut self.jobs[id.0];
        job.retried += 1;
        let (attempt, task, stage) = (job.retried, job.task.clone(), job.claims[0].stage);
        let delay = Duration::from_secs(1 << (attempt - 1).min(6));
        self.emit(Event::Retried {
            part: self.part(id),
            attempt,
            problem,
        });
        self.ask(Effect::Run {
            job: id,
            stage,
            task,
            delay,
        });
    }

    /// The one function that moves a job on.
    pub(super) fn set_job(&mut self, id: JobId, state: JobState) {
        let job = &mut self.jobs[id.0];
        let (stage, place) = (job.claims[0].stage, job.claims[0].place);
        let rank = (Reverse(job.critical_path_ms), stage.index(), place, id);
        let demand = job.task.demand;
        let old = std::mem::replace(&mut job.state, state);
        if matches!(old, JobState::Running) {
            self.pool.leave(&demand);
        }
        match (&self.jobs[id.0].state, old) {
            (JobState::Ready { .. }, _) => self.pool.wait(rank),
            (JobState::Running, JobState::Ready { why }) => {
                self.pool.enter(&rank, &demand);
                let task = self.jobs[id.0].task.clone();
                self.emit(Event::Started {
                    part: self.part(id),
                    why,
                });
                self.ask(Effect::Run {
                    job: id,
                    stage,
                    task,
                    delay: Duration::ZERO,
                });
            }
            (JobState::Done { .. }, _) => self.done(id),
            _ => {}
        }
    }

    /// Gives a job's outputs to the parts that claim them: to the first as a run or a hit, to the
    /// others for nothing.
    pub(super) fn done(&mut self, id: JobId) {
        let claims = self.jobs[id.0].claims.clone();
        for (index, claim) in claims.iter().enumerate() {
            match &self.jobs[id.0].state {
                JobState::Done {
                    hit: false,
                    took_ms,
                    outputs,
                } if index == 0 => {
                    let output_bytes = outputs
                        .values()
                        .map(|part| part.content.digest.size_bytes)
                        .sum();
                    let part = self.part_id(claim);
                    let event = Event::Done {
                        part,
                        took_ms: *took_ms,
                        output_bytes,
                    };
                    self.count.ran += 1;
                    self.emit(event);
                    self.close_part(claim.stage);
                }
                _ => self.hit(claim),
            }
            self.complete_if_done(claim.stage);
        }
    }

    pub(super) fn fail_job(&mut self, id: JobId, problem: Problem) {
        self.set_job(id, JobState::Failed);
        for claim in self.jobs[id.0].claims.clone() {
            self.count.failed += 1;
            self.emit(Event::Failed {
                part: self.part_id(&claim),
                problem: problem.clone(),
            });
            self.set_stage(claim.stage, StageState::Failed);
        }
    }

    pub(super) fn too_large(&self, id: JobId) -> Problem {
        let needed = self.jobs[id.0].task.demand.memory_bytes;
        let budget = self.limits.memory_bytes;
        let message = format!(
            "`{}` needs {}, the budget is {}",
            self.part(id),
            bytes(needed),
            bytes(budget)
        );
        let more =
            "give more with --memory BYTES, if this machine has it, or build on a larger one";
        let smaller = self.jobs[id.0]
            .task
            .smaller
            .iter()
            .find(|smaller| smaller.memory_bytes <= budget);
        Problem::new(Code::EngineMemory, message).help(match smaller {
            Some(Smaller {
                memory_bytes,
                advice,
            }) => {
                format!("{advice}: that needs {}; or {more}", bytes(*memory_bytes))
            }
            None => more.into(),
        })
    }

    /// Lets in what there is room for.
    pub(super) fn admit(&mut self) {
        while !self.stopping {
            let Some(id) = self.pool.next(|id| self.jobs[id.0].task.demand) else {
                return;
            };
            self.set_job(id, JobState::Running);
        }
    }

    /// The part that a job is told of as: the first that claimed it.
    pub(super) fn part(&self, id: JobId) -> PartId {
        self.part_id(&self.jobs[id.0].claims[0])
    }
}
