//! One stream of events; every view of a build is a listener.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::{Digest, Problem};

/// A part of a stage: `weights/blk.0.attn_q.weight`; only the stage's name where it has a single part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PartId {
    /// The stage's name in the plan.
    pub stage: String,
    /// The work order's name; empty for a single one.
    pub part: String,
}

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.part.is_empty() { f.write_str(&self.stage) } else { write!(f, "{}/{}", self.stage, self.part) }
    }
}

/// Why a part runs. Old and new value, of the very field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
#[allow(missing_docs)] // a variant says what its fields are
pub enum Why {
    /// No earlier build of this plan had this part.
    FirstTime,
    /// Another stage kind stands at this name.
    Kind { old: String, new: String },
    /// The stage's code changed.
    StageVersion { old: u32, new: u32 },
    /// A parameter changed; the path is like `override/0/scheme`.
    Param { path: String, old: Value, new: Value },
    /// An input's bytes or facts changed, came or went.
    Input { name: String, old: Option<String>, new: Option<String> },
    /// A tool's file changed, came or went.
    Tool { name: String, old: Option<String>, new: Option<String> },
    /// The action is the same, but a blob it gave is gone from the store.
    OutputGone { blob: String },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = |f: &mut fmt::Formatter, name: &str, old: &dyn fmt::Display, new: &dyn fmt::Display| {
            write!(f, "{name}: {old} -> {new}")
        };
        let given = |value: &Option<String>| value.as_deref().map_or("nothing".into(), short);
        match self {
            Why::FirstTime => f.write_str("for the first time"),
            Why::Kind { old, new } => change(f, "kind", old, new),
            Why::StageVersion { old, new } => change(f, "version of the stage's code", old, new),
            Why::Param { path, old, new } => change(f, path, old, new),
            Why::Input { name, old, new } => change(f, &format!("input {name}"), &given(old), &given(new)),
            Why::Tool { name, old, new } => change(f, &format!("tool {name}"), &given(old), &given(new)),
            Why::OutputGone { blob } => write!(f, "gone from the cache: {}", short(blob)),
        }
    }
}

/// A digest as people read it; anything else as it is.
fn short(text: &str) -> String {
    text.parse::<Digest>().map_or_else(|_| text.into(), |digest| digest.short())
}

/// What happens in a build, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[allow(missing_docs)] // a variant says what its fields are
pub enum Event {
    /// The build begins.
    Begun { plan: String, stages: Vec<String> },
    /// A stage knows its parts.
    Expanded { stage: String, parts: usize },
    /// All parts of a stage were found in the cache at once, as an earlier build left them.
    Unchanged { stage: String, parts: usize },
    /// A part was found in the cache.
    Hit { part: PartId },
    /// A part begins to run.
    Started { part: PartId, why: Vec<Why> },
    /// A part failed and is tried again.
    Retried { part: PartId, attempt: u32, problem: Problem },
    /// A part has come this far.
    Progress { part: PartId, done: u64, total: u64, unit: String },
    /// A part is done.
    Done { part: PartId, took_ms: u64, output_bytes: u64 },
    /// A part or an expansion failed.
    Failed { part: PartId, problem: Problem },
    /// Every part of a stage is there.
    Sealed { stage: String },
    /// A stage will not run, because one it waits for failed.
    Skipped { stage: String },
    /// The build is over.
    Finished { hits: usize, ran: usize, failed: usize, cancelled: bool },
}

/// Hears every event, in order, on the driver's thread.
pub trait Listener {
    /// Hears one.
    fn hear(&mut self, event: &Event);
}
