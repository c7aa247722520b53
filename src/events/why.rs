//! Reasons why a part runs, with old and new values.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::Digest;

/// Maximum number of reasons on one line.
const MAX_SHOWN: usize = 3;
/// Characters of a value that are shown.
const MAX_CHARACTERS: usize = 80;

/// Why a part runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
#[allow(missing_docs)] // a variant says what its fields are
pub enum Why {
    /// No earlier build of this plan has this part.
    FirstTime,
    /// The stage has another kind.
    Kind { old: String, new: String },
    /// The version of the stage kind changed.
    StageVersion { old: u32, new: u32 },
    /// A parameter changed; the path is like `override/0/scheme`.
    Param {
        path: String,
        old: Value,
        new: Value,
    },
    /// An input changed its bytes or facts, was added or removed.
    Input {
        name: String,
        old: Option<String>,
        new: Option<String>,
    },
    /// A file of a tool changed, was added or removed.
    Tool {
        name: String,
        old: Option<String>,
        new: Option<String>,
    },
    /// The action is the same, but a blob of its output is missing from the store.
    OutputGone { blob: String },
    /// The cache has a result from another machine that is not verified against the pin.
    Unproved,
    /// The cache has a result, but not the outputs that the action names.
    OtherOutputs,
    /// Another part has the same action and the reasons.
    Same { part: String },
    /// It runs again to compare the outputs.
    Again,
    /// Its output is only valid for one build.
    Volatile,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::FirstTime => f.write_str("first build"),
            Why::Kind { old, new } => write!(f, "kind: {old} -> {new}"),
            Why::StageVersion { old, new } => write!(f, "stage version: {old} -> {new}"),
            Why::Param { path, old, new } => {
                write!(f, "{path}: {} -> {}", clipped(old), clipped(new))
            }
            Why::Input { name, old, new } => {
                write!(f, "input {name}: {} -> {}", short(old), short(new))
            }
            Why::Tool { name, old, new } => {
                write!(f, "tool {name}: {} -> {}", short(old), short(new))
            }
            Why::Same { part } => write!(f, "same action as {part}"),
            Why::Again => f.write_str("run again for comparison"),
            Why::Volatile => f.write_str("measured in every build"),
            Why::Unproved => f.write_str("the cached result is not verified against the pin"),
            Why::OtherOutputs => f.write_str("the cached result does not match `outputs`"),
            Why::OutputGone { blob } => {
                write!(f, "missing from the cache: {}", short_digest(blob))
            }
        }
    }
}

fn short(value: &Option<String>) -> String {
    match value {
        Some(text) => short_digest(text),
        None => "nothing".into(),
    }
}

/// The first characters of a long value, such as a prompt.
fn clipped(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().nth(MAX_CHARACTERS).is_none() {
        return text;
    }
    let start: String = text.chars().take(MAX_CHARACTERS - 3).collect();
    format!("{start}...")
}

/// The short form of a digest. Other texts are returned unchanged.
fn short_digest(text: &str) -> String {
    match text.parse::<Digest>() {
        Ok(digest) => digest.short(),
        Err(_) => text.into(),
    }
}

/// The first few reasons, on one line.
pub fn in_short(reasons: &[Why]) -> String {
    let mut shown = vec![];
    for reason in reasons.iter().take(MAX_SHOWN) {
        shown.push(reason.to_string());
    }
    let more = reasons.len().saturating_sub(MAX_SHOWN);
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join("; ")
}
