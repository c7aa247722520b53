//! One stream of events; every view of a build is a listener. `docs/events.md` says what each event
//! is as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Why;
use crate::base::Problem;

/// The number of the events' form. Within it, fields are added, never changed; a new event raises
/// it.
pub const SCHEMA: u32 = 1;

/// A part of a stage: `weights/blk.0.attn_q.weight`; only the stage's name where it has a single
/// part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PartId {
    /// The stage's name in the plan.
    pub stage: String,
    /// The work order's name; empty for a single one.
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

/// What happens in a build, in order.
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
    /// A stage knows its parts.
    Expanded { stage: String, parts: usize },
    /// All parts of a stage were found in the cache in one look: as if expanded, each part hit, and
    /// sealed.
    Unchanged { stage: String, parts: usize },
    /// A part was found in the cache.
    Hit { part: PartId },
    /// A part begins to run.
    Started { part: PartId, why: Vec<Why> },
    /// A part has come this far.
    Progress {
        part: PartId,
        done: u64,
        total: u64,
        unit: String,
    },
    /// A part failed and is tried again; attempts count from 1.
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
    /// Every part of a stage is there.
    CompletedStage {
        stage: String,
        /// It gives just what it gave before: what takes from it is not redone.
        #[serde(default)]
        as_before: bool,
    },
    /// A stage will not run, because one it waits for failed.
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
            | Event::CompletedStage { stage, .. }
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

/// Hears every event, in order, on the driver's thread.
pub trait Listener {
    /// Hears one.
    fn on_event(&mut self, event: &Event);
}

/// Hears every event and when it was: what can be heard from a build and from its log alike.
pub trait TimedListener {
    /// Hears what happened so many milliseconds after the build began.
    fn on_event_at(&mut self, at_ms: u64, event: &Event);
}

/// Who does not ask for the time can still be told.
impl<L: Listener> TimedListener for L {
    fn on_event_at(&mut self, _: u64, event: &Event) {
        self.on_event(event);
    }
}
