//! The resource pool: starts as many jobs as threads and memory allow, the one with the longest
//! critical path first.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{JobId, Limits};
use crate::action::Demand;

/// The priority of a waiting job: the longest critical path first, then stage and order in the
/// plan.
type Rank = (Reverse<u64>, usize, usize, JobId);

/// The resources in use, and the jobs that wait for them.
pub(super) struct ResourcePool {
    limits: Limits,
    threads: u32,
    memory_bytes: u64,
    waiting: BTreeSet<Rank>,
}

impl ResourcePool {
    /// A pool with no resources in use.
    pub(super) fn new(limits: Limits) -> Self {
        ResourcePool {
            limits,
            threads: 0,
            memory_bytes: 0,
            waiting: BTreeSet::new(),
        }
    }

    /// `demand`, with its threads reduced to the limit.
    pub(super) fn clamp_threads(&self, demand: Demand) -> Demand {
        Demand {
            threads: demand.threads.clamp(1, self.limits.jobs.max(1)),
            ..demand
        }
    }

    /// Whether `demand` fits if nothing else is in use.
    pub(super) fn can_ever_fit(&self, demand: &Demand) -> bool {
        demand.memory_bytes <= self.limits.memory_bytes
    }

    /// Adds a job to the queue.
    pub(super) fn enqueue(&mut self, rank: Rank) {
        self.waiting.insert(rank);
    }

    /// The first waiting job that fits now. A job that does not fit does not block later ones.
    pub(super) fn next(&self, demand_of: impl Fn(JobId) -> Demand) -> Option<JobId> {
        if self.threads >= self.limits.jobs {
            return None;
        }
        for (.., job) in &self.waiting {
            let demand = demand_of(*job);
            if demand.threads <= self.limits.jobs - self.threads
                && demand.memory_bytes <= self.limits.memory_bytes - self.memory_bytes
            {
                return Some(*job);
            }
        }
        None
    }

    /// Moves a waiting job out of the queue and takes its resources.
    pub(super) fn acquire(&mut self, rank: &Rank, demand: &Demand) {
        self.waiting.remove(rank);
        self.threads += demand.threads;
        self.memory_bytes += demand.memory_bytes;
    }

    /// Returns the resources of a job.
    pub(super) fn release(&mut self, demand: &Demand) {
        self.threads -= demand.threads;
        self.memory_bytes -= demand.memory_bytes;
    }
}
