//! Counts what happened, stage by stage: for the table at the end, and for other listeners.

use std::fmt;
use std::time::Duration;

use super::{Event, Listener};
use crate::base::{count, duration};

/// What happened so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// By stage, in the order of the plan.
    pub stages: Vec<(String, StageTally)>,
}

/// What happened in one stage. Prints as `272 parts, 270 from the cache, 2 ran in 3.20 s`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageTally {
    /// How many parts it has; 0 until it is expanded.
    pub parts: usize,
    /// Found in the cache.
    pub hits: usize,
    /// Begun.
    pub started: usize,
    /// Done.
    pub ran: usize,
    /// Failed, its expansion included.
    pub failed: usize,
    /// Never to be run, because a stage it waits for failed.
    pub skipped: bool,
    /// Complete.
    pub completed: bool,
    /// It gave just what it gave before.
    pub as_before: bool,
    /// The time of all parts that ran, added up.
    pub took_ms: u64,
    /// The bytes of all parts that ran.
    pub output_bytes: u64,
}

impl Summary {
    /// The tally of a stage.
    pub fn stage(&self, name: &str) -> Option<&StageTally> {
        self.stages
            .iter()
            .find(|(stage, _)| stage == name)
            .map(|(_, tally)| tally)
    }

    /// A number over all stages.
    pub fn total(&self, number: impl Fn(&StageTally) -> usize) -> usize {
        self.stages
            .iter()
            .map(|(_, tally)| number(tally))
            .fold(0, usize::saturating_add)
    }

    fn entry(&mut self, name: &str) -> &mut StageTally {
        let at = self
            .stages
            .iter()
            .position(|(stage, _)| stage == name)
            .unwrap_or_else(|| {
                self.stages.push((name.into(), StageTally::default()));
                self.stages.len() - 1
            });
        &mut self.stages[at].1
    }
}

/// Sums saturate: a log may tell of more than any build could do.
impl Listener for Summary {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Begun { stages, .. } => stages.iter().for_each(|stage| _ = self.entry(stage)),
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
            Event::CompletedStage { stage, as_before } => {
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
        // Early cut-off: different work, the same outcome.
        if self.ran > 0 && self.as_before {
            write!(f, "; it gives what it gave before")
        } else {
            Ok(())
        }
    }
}
