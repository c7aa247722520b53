//! Who is let in next: as many jobs as threads and memory allow, the longest road ahead first.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{JobId, Limits};
use crate::action::Demand;

/// A waiting job's place in the queue: the time of all that waits behind it, longest first, then
/// the plan's order.
type Rank = (Reverse<u64>, usize, usize, JobId);

/// What is in use, and who waits for it.
pub(super) struct ResourcePool {
    limits: Limits,
    threads: u32,
    memory_bytes: u64,
    waiting: BTreeSet<Rank>,
}

impl ResourcePool {
    /// An empty one.
    pub(super) fn new(limits: Limits) -> Self {
        ResourcePool {
            limits,
            threads: 0,
            memory_bytes: 0,
            waiting: BTreeSet::new(),
        }
    }

    /// `demand`, cut down to the threads that there are.
    pub(super) fn fitted(&self, demand: Demand) -> Demand {
        Demand {
            threads: demand.threads.clamp(1, self.limits.jobs.max(1)),
            ..demand
        }
    }

    /// Whether `demand` fits into an empty room.
    pub(super) fn could_hold(&self, demand: &Demand) -> bool {
        demand.memory_bytes <= self.limits.memory_bytes
    }

    pub(super) fn wait(&mut self, rank: Rank) {
        self.waiting.insert(rank);
    }

    /// The next that fits. Where the first does not fit, a later one may.
    pub(super) fn next(&self, demand_of: impl Fn(JobId) -> Demand) -> Option<JobId> {
        if self.threads >= self.limits.jobs {
            return None;
        }
        let fits = |demand: Demand| {
            demand.threads <= self.limits.jobs - self.threads
                && demand.memory_bytes <= self.limits.memory_bytes - self.memory_bytes
        };
        self.waiting
            .iter()
            .map(|(.., job)| *job)
            .find(|job| fits(demand_of(*job)))
    }

    /// A waiting job begins.
    pub(super) fn enter(&mut self, rank: &Rank, demand: &Demand) {
        self.waiting.remove(rank);
        self.threads += demand.threads;
        self.memory_bytes += demand.memory_bytes;
    }

    /// A running job ends.
    pub(super) fn leave(&mut self, demand: &Demand) {
        self.threads -= demand.threads;
        self.memory_bytes -= demand.memory_bytes;
    }
}
