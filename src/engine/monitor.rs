//! Observes a running job: forwards its progress, and stops it on cancellation and timeout.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::base::{Code, Problem, Result, duration};
use crate::execute::{RunOutput, Watch};

/// The minimum time between two reports of progress, and the time between two checks of a waiting
/// job.
const INTERVAL: Duration = Duration::from_millis(50);

/// Called with `done`, `total` and `unit`.
type Progress<'a> = &'a (dyn Fn(u64, u64, String) + Sync);

pub(super) struct JobMonitor<'a> {
    progress: Progress<'a>,
    cancel: &'a AtomicBool,
    /// When the job starts.
    start: Instant,
    /// How long it may run.
    timeout: Option<Duration>,
    last_report: Mutex<Option<Instant>>,
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
            start: Instant::now() + delay,
            timeout,
            last_report: Mutex::new(None),
        }
    }

    /// Sleeps until the job should start; fails if the build is being stopped.
    pub(super) fn wait_for_start(&self) -> Result<()> {
        loop {
            let remaining = self.start.saturating_duration_since(Instant::now());
            if self.cancel.load(Ordering::Relaxed) {
                return Err(Problem::cancelled());
            }
            if remaining.is_zero() {
                return Ok(());
            }
            sleep(remaining.min(INTERVAL));
        }
    }

    /// Sleeps for a short time; fails if the job should stop.
    pub(super) fn sleep(&self) -> Result<()> {
        sleep(INTERVAL);
        if self.cancelled() {
            return Err(Problem::cancelled());
        }
        Ok(())
    }

    /// The result of the job: a job that was stopped by its timeout failed.
    pub(super) fn check_timeout(&self, result: Result<RunOutput>) -> Result<RunOutput> {
        if let Err(problem) = &result
            && let Some(timeout) = self.timeout
            && self.is_timed_out()
            && problem.is_cancelled()
            && !self.cancel.load(Ordering::Relaxed)
        {
            let message = format!("stopped after its `timeout` of {}", duration(timeout));
            return Err(Problem::new(Code::EngineTimeout, message)
                .help("give the stage a longer `timeout`, or find out what it waits for"));
        }
        result
    }

    fn is_timed_out(&self) -> bool {
        match self.timeout {
            Some(timeout) => self.start.elapsed() >= timeout,
            None => false,
        }
    }
}

impl Watch for JobMonitor<'_> {
    fn progress(&self, done: u64, total: u64, unit: &str) {
        let mut last_report = self
            .last_report
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = *last_report
            && last.elapsed() < INTERVAL
            && done != total
        {
            return;
        }
        *last_report = Some(Instant::now());
        (self.progress)(done, total, unit.into());
    }

    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.is_timed_out()
    }
}
