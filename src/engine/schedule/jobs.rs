//! The part of the scheduler that changes the states of jobs.

use std::cmp::Reverse;
use std::time::Duration;

use super::super::{Effect, JobId, JobState, PastRun, StageState};
use super::Scheduler;
use crate::action::{Isolation, Smaller};
use crate::base::{Code, Problem, bytes};
use crate::events::{Event, PartId, Why};

impl Scheduler<'_> {
    /// A job is not in the cache and must run. Fails if it can never fit.
    pub(super) fn missed(&mut self, id: JobId, why: Vec<Why>, past: Option<PastRun>) {
        self.foresee_all();
        let job = &mut self.jobs[id.0];
        if let Some(past) = past {
            job.critical_path_ms += past.took_ms;
            // The measured peak is a better estimate than the demand of the stage. A tenth is
            // added, since runs differ, but not beyond the limit: what fitted once may run again.
            if job.task.demand.isolation == Isolation::Process
                && let Some(peak) = past.peak_memory_bytes
            {
                job.task.demand.memory_bytes = peak
                    .saturating_add(peak / 10)
                    .min(self.limits.memory_bytes.max(peak));
            }
        }
        if self.pool.can_ever_fit(&self.jobs[id.0].task.demand) {
            self.set_job(id, JobState::Ready { why });
        } else {
            self.fail_job(id, self.too_large(id));
        }
    }

    pub(super) fn may_retry(&self, id: JobId) -> bool {
        let job = &self.jobs[id.0];
        !self.stopping && job.retries < self.planned(job.parts[0].stage).retries
    }

    /// Runs a job again, after a delay that doubles each time. It keeps its resources.
    pub(super) fn retry(&mut self, id: JobId, problem: Problem) {
        let job = &mut self.jobs[id.0];
        job.retries += 1;
        let (attempt, task, stage) = (job.retries, job.task.clone(), job.parts[0].stage);
        let delay = Duration::from_secs(1 << (attempt - 1).min(6));
        self.emit(Event::Retried {
            part: self.first_part(id),
            attempt,
            problem,
        });
        self.request(Effect::Run {
            job: id,
            stage,
            task,
            delay,
        });
    }

    /// Changes the state of a job, with all consequences. Nothing else changes it.
    pub(super) fn set_job(&mut self, id: JobId, state: JobState) {
        let job = &mut self.jobs[id.0];
        let (stage, place) = (job.parts[0].stage, job.parts[0].place);
        let rank = (Reverse(job.critical_path_ms), stage.index(), place, id);
        let demand = job.task.demand;
        let old = std::mem::replace(&mut job.state, state);
        if matches!(old, JobState::Running) {
            self.pool.release(&demand);
        }
        match (&self.jobs[id.0].state, old) {
            (JobState::Ready { .. }, _) => self.pool.enqueue(rank),
            (JobState::Running, JobState::Ready { why }) => {
                self.pool.acquire(&rank, &demand);
                let task = self.jobs[id.0].task.clone();
                self.emit(Event::Started {
                    part: self.first_part(id),
                    why,
                });
                self.request(Effect::Run {
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

    /// Finishes the parts of a job. The first one counts as a run or a hit, the others as hits.
    pub(super) fn done(&mut self, id: JobId) {
        let parts = self.jobs[id.0].parts.clone();
        for (index, part) in parts.iter().enumerate() {
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
                    let event = Event::Done {
                        part: self.part_id(part),
                        took_ms: *took_ms,
                        output_bytes,
                    };
                    self.counts.ran += 1;
                    self.emit(event);
                    self.close_part(part.stage);
                }
                _ => self.hit(part),
            }
            self.complete_if_done(part.stage);
        }
    }

    pub(super) fn fail_job(&mut self, id: JobId, problem: Problem) {
        self.set_job(id, JobState::Failed);
        for part in self.jobs[id.0].parts.clone() {
            self.counts.failed += 1;
            self.emit(Event::Failed {
                part: self.part_id(&part),
                problem: problem.clone(),
            });
            self.set_stage(part.stage, StageState::Failed);
        }
    }

    pub(super) fn too_large(&self, id: JobId) -> Problem {
        let needed = self.jobs[id.0].task.demand.memory_bytes;
        let budget = self.limits.memory_bytes;
        let message = format!(
            "`{}` needs {}, the budget is {}",
            self.first_part(id),
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

    /// Starts the jobs that fit.
    pub(super) fn start_jobs(&mut self) {
        while !self.stopping {
            let Some(id) = self.pool.next(|id| self.jobs[id.0].task.demand) else {
                return;
            };
            self.set_job(id, JobState::Running);
        }
    }

    /// The part whose name events of a job have.
    pub(super) fn first_part(&self, id: JobId) -> PartId {
        self.part_id(&self.jobs[id.0].parts[0])
    }
}
