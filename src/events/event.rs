//! The events of a build and the interface of listeners. Each view of a build is a listener.
//! `docs/events.md` describes the events as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Why;
use crate::base::Problem;

/// The version of the event schema. New fields do not change it; a new event does.
pub const SCHEMA: u32 = 2;

/// A part of a stage: `weights/blk.0.attn_q.weight`. Displayed as the name of the stage if the
/// stage has a single part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PartId {
    /// The id of the stage.
    pub stage: String,
    /// The name of the work order; empty if it is the only one.
    pub part: String,
}

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.part.is_empty() {
            f.write_str(&self.stage)
        } else {
            write!(f, "{}/{}", self.stage, self.part)
        }
    }
}

/// An event of a build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(missing_docs)] // a variant says what its fields are
pub enum Event {
    /// The build begins; `schema` is [`SCHEMA`].
    Begun {
        schema: u32,
        plan: String,
        stages: Vec<String>,
    },
    /// The parts of a stage are known.
    Expanded { stage: String, parts: usize },
    /// All parts of a stage were found in the cache with one lookup. Stands for `Expanded`, a `Hit`
    /// for each part and `Completed`.
    Unchanged { stage: String, parts: usize },
    /// A part was found in the cache.
    Hit { part: PartId },
    /// A part starts to run.
    Started { part: PartId, why: Vec<Why> },
    /// A running part reports progress. The total is 0 if it is not known.
    Progress {
        part: PartId,
        done: u64,
        total: u64,
        unit: String,
    },
    /// A part failed and is run again. `attempt` is the one that failed, counted from 1.
    Retried {
        part: PartId,
        attempt: u32,
        problem: Problem,
    },
    /// A part is done.
    Done {
        part: PartId,
        took_ms: u64,
        output_bytes: u64,
    },
    /// A part or an expansion failed.
    Failed { part: PartId, problem: Problem },
    /// Every part of a stage is done.
    Completed {
        stage: String,
        /// Its output is that of the last build, so that its consumers do not run again.
        #[serde(default)]
        as_before: bool,
    },
    /// A stage does not run because a stage that it depends on failed.
    Skipped { stage: String },
    /// The build is over.
    Finished {
        hits: usize,
        ran: usize,
        failed: usize,
        cancelled: bool,
    },
}

impl Event {
    /// The stage that it is about, if it is about one.
    pub fn stage(&self) -> Option<&str> {
        match self {
            Event::Begun { .. } | Event::Finished { .. } => None,
            Event::Expanded { stage, .. }
            | Event::Unchanged { stage, .. }
            | Event::Completed { stage, .. }
            | Event::Skipped { stage } => Some(stage),
            Event::Hit { part }
            | Event::Started { part, .. }
            | Event::Progress { part, .. }
            | Event::Retried { part, .. }
            | Event::Done { part, .. }
            | Event::Failed { part, .. } => Some(&part.stage),
        }
    }
}

/// Receives every event, in order, on the thread of the driver.
pub trait Listener {
    /// Handles an event.
    fn on_event(&mut self, event: &Event);
}

/// Receives every event with its time, from a build or from its log.
pub trait TimedListener {
    /// Handles an event that happened `at_ms` milliseconds after the build began.
    fn on_event_at(&mut self, at_ms: u64, event: &Event);
}

impl<L: Listener> TimedListener for L {
    fn on_event_at(&mut self, _: u64, event: &Event) {
        self.on_event(event);
    }
}
