//! Counts the parts of each stage: for the table at the end of a build, and for other listeners.

use std::fmt;
use std::time::Duration;

use super::{Event, Listener};
use crate::base::{count, duration};

/// The counts of all stages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// By stage, in the order of the plan.
    pub stages: Vec<(String, StageTally)>,
}

/// The counts of one stage. Displayed as `272 parts, 270 from the cache, 2 ran in 3.20 s`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageTally {
    /// How many parts it has; 0 until it is expanded.
    pub parts: usize,
    /// Parts found in the cache.
    pub hits: usize,
    /// Parts that started.
    pub started: usize,
    /// Parts that ran and succeeded.
    pub ran: usize,
    /// Failures, including that of the expansion.
    pub failed: usize,
    /// Whether it does not run because a stage that it depends on failed.
    pub skipped: bool,
    /// Whether all parts are done.
    pub completed: bool,
    /// Whether its output is that of the last build.
    pub as_before: bool,
    /// The sum of the times of all parts that ran.
    pub took_ms: u64,
    /// The size of the outputs of all parts that ran.
    pub output_bytes: u64,
}

impl Summary {
    /// The counts of a stage.
    pub fn stage(&self, name: &str) -> Option<&StageTally> {
        let (_, tally) = self.stages.iter().find(|(stage, _)| stage == name)?;
        Some(tally)
    }

    /// The sum of a number over all stages. It saturates.
    pub fn total(&self, number: impl Fn(&StageTally) -> usize) -> usize {
        let mut total: usize = 0;
        for (_, tally) in &self.stages {
            total = total.saturating_add(number(tally));
        }
        total
    }

    fn entry(&mut self, name: &str) -> &mut StageTally {
        let index = match self.stages.iter().position(|(stage, _)| stage == name) {
            Some(index) => index,
            None => {
                self.stages.push((name.into(), StageTally::default()));
                self.stages.len() - 1
            }
        };
        &mut self.stages[index].1
    }
}

/// Sums saturate, because the numbers may come from a log.
impl Listener for Summary {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Begun { stages, .. } => {
                for stage in stages {
                    self.entry(stage);
                }
            }
            Event::Expanded { stage, parts } => self.entry(stage).parts = *parts,
            Event::Unchanged { stage, parts } => {
                let tally = self.entry(stage);
                (tally.parts, tally.hits, tally.completed) = (*parts, *parts, true);
            }
            Event::Hit { part } => {
                let tally = self.entry(&part.stage);
                tally.hits = tally.hits.saturating_add(1);
            }
            Event::Started { part, .. } => self.entry(&part.stage).started += 1,
            Event::Done {
                part,
                took_ms,
                output_bytes,
            } => {
                let tally = self.entry(&part.stage);
                tally.ran += 1;
                tally.took_ms = tally.took_ms.saturating_add(*took_ms);
                tally.output_bytes = tally.output_bytes.saturating_add(*output_bytes);
            }
            Event::Failed { part, .. } => self.entry(&part.stage).failed += 1,
            Event::Completed { stage, as_before } => {
                let tally = self.entry(stage);
                (tally.completed, tally.as_before) = (true, *as_before);
            }
            Event::Skipped { stage } => self.entry(stage).skipped = true,
            Event::Progress { .. } | Event::Retried { .. } | Event::Finished { .. } => {}
        }
    }
}

impl fmt::Display for StageTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = duration(Duration::from_millis(self.took_ms));
        write!(f, "{}, ", count(self.parts, "part"))?;
        match (self.hits, self.ran) {
            (_, 0) => write!(f, "from the cache"),
            (0, _) => write!(f, "{took}"),
            (hits, ran) => write!(f, "{hits} from the cache, {ran} ran in {took}"),
        }?;
        // Early cut-off: consumers do not run again.
        if self.ran > 0 && self.as_before {
            f.write_str("; output unchanged")?;
        }
        Ok(())
    }
}
