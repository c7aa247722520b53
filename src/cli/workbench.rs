//! What `build`, `plan` and `explain` need alike: the plan, the stages, the cache and the record.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::{Common, Failed, PlanArgs};
use crate::action::Registry;
use crate::engine::{Build, Built, Limits, Record, select};
use crate::events::{Event, Listener};
use crate::execute::Local;
use crate::plan::Plan;
use crate::stages;
use crate::store::Disk;

/// Everything laid out for a build.
pub(super) struct Workbench {
    pub(super) plan: Plan,
    pub(super) store: Disk,
    stages: Registry,
    last: Record,
}

impl Workbench {
    /// Reads the plan, or the `wanted` part of it, and opens the cache.
    pub(super) fn lay(args: &PlanArgs, wanted: &[String], common: &Common) -> Result<Workbench, Failed> {
        let stages = stages::all();
        let plan = select(args.load(&stages)?, wanted)?;
        let store = Disk::open(&common.cache)?;
        let last = Record::read(store.root(), &plan.name)?;
        Ok(Workbench { plan, store, stages, last })
    }

    /// Builds, as far as `limits` allow.
    pub(super) fn build(&self, limits: Limits, cancel: &AtomicBool, listener: &mut dyn Listener) -> Built {
        let program = PathBuf::from("/proc/self/exe");
        let executor = Local { store: &self.store, stages: &self.stages, program };
        let build = Build {
            plan: &self.plan,
            stages: &self.stages,
            blobs: &self.store,
            actions: &self.store,
            executor: &executor,
            last: &self.last,
            limits,
            cancel,
        };
        build.run(listener)
    }

    /// Finds out what a build would do.
    pub(super) fn dry_run(&self) -> Result<Built, Failed> {
        let mut ear = Problems(vec![]);
        let limits = Limits { jobs: 0, memory_bytes: u64::MAX };
        let built = self.build(limits, &AtomicBool::new(false), &mut ear);
        match ear.0 {
            problems if problems.is_empty() => Ok(built),
            problems => Err(Failed { problems, source: None }),
        }
    }

    /// Remembers what was built, for the reasons of the next build.
    pub(super) fn remember(&self, built: &Built) -> Result<(), Failed> {
        let mut record = self.last.clone();
        record.merge(built);
        if record != self.last {
            record.write(self.store.root(), &self.plan.name)?;
        }
        Ok(())
    }
}

/// Hears only what goes wrong.
struct Problems(Vec<crate::base::Problem>);

impl Listener for Problems {
    fn hear(&mut self, event: &Event) {
        if let Event::Failed { problem, .. } = event {
            self.0.push(problem.clone());
        }
    }
}
