//! The engine's eye on a running job: passes on its progress, and tells it to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::base::{Code, Problem, Result, duration};
use crate::execute::{Ran, Watch};

/// How often a running job's progress is told.
const PROGRESS: Duration = Duration::from_millis(50);

/// Hears `done`, `total` and `unit`.
type Progress<'a> = &'a (dyn Fn(u64, u64, String) + Sync);

pub(super) struct JobMonitor<'a> {
    progress: Progress<'a>,
    cancel: &'a AtomicBool,
    begins: Instant,
    /// How long it may run.
    timeout: Option<Duration>,
    told: Mutex<Option<Instant>>,
}

impl<'a> JobMonitor<'a> {
    pub(super) fn new(
        progress: Progress<'a>,
        cancel: &'a AtomicBool,
        timeout: Option<Duration>,
        delay: Duration,
    ) -> Self {
        JobMonitor {
            progress,
            cancel,
            begins: Instant::now() + delay,
            timeout,
            told: Mutex::new(None),
        }
    }

    /// Sleeps until the delay is over, or the build is being stopped.
    pub(super) fn wait_for_action_lock(&self) -> Result<()> {
        loop {
            let left = self.begins.saturating_duration_since(Instant::now());
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Problem::cancelled());
            }
            if left.is_zero() {
                return Ok(());
            }
            sleep(left.min(PROGRESS));
        }
    }

    /// Sleeps a little; a problem once it should stop.
    pub(super) fn wait(&self) -> Result<()> {
        sleep(PROGRESS);
        match self.cancelled() {
            true => Err(Problem::cancelled()),
            false => Ok(()),
        }
    }

    /// What came of the job: one that stopped because its time was over failed.
    pub(super) fn judge(&self, ran: Result<Ran>) -> Result<Ran> {
        match (ran, self.timeout.filter(|_| self.is_over())) {
            (Err(problem), Some(timeout))
                if problem.is_cancelled() && !self.cancel.load(Ordering::Relaxed) =>
            {
                let message = format!("stopped after its `timeout` of {}", duration(timeout));
                Err(Problem::new(Code::EngineTimeout, message)
                    .help("give the stage a longer `timeout`, or find out what it waits for"))
            }
            (ran, _) => ran,
        }
    }

    fn is_over(&self) -> bool {
        self.timeout
            .is_some_and(|timeout| self.begins.elapsed() >= timeout)
    }
}

impl Watch for JobMonitor<'_> {
    fn progress(&self, done: u64, total: u64, unit: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if done == total || told.is_none_or(|told| told.elapsed() >= PROGRESS) {
            *told = Some(Instant::now());
            (self.progress)(done, total, unit.into());
        }
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.is_over()
    }
}
