//! Why a part runs: an enum value that holds old and new.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::Digest;

/// How many reasons are said where there is little room.
const FEW: usize = 3;

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
    Param {
        path: String,
        old: Value,
        new: Value,
    },
    /// An input's bytes or facts changed, came or went.
    Input {
        name: String,
        old: Option<String>,
        new: Option<String>,
    },
    /// A tool's file changed, came or went.
    Tool {
        name: String,
        old: Option<String>,
        new: Option<String>,
    },
    /// The action is the same, but a blob it gave is gone from the store.
    OutputGone { blob: String },
    /// The cache has a result, but it was brought from elsewhere, and is not known to be what the
    /// pin says.
    Unproved,
    /// The cache has a result, but not with the outputs that the action names.
    OtherOutputs,
    /// Its action is also that of another part, which says why.
    Same { part: String },
    /// It ran before, and is to give the same once more.
    Again,
    /// What it gives holds only for the moment: it runs in every build.
    Volatile,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change =
            |f: &mut fmt::Formatter, name: &str, old: &dyn fmt::Display, new: &dyn fmt::Display| {
                write!(f, "{name}: {old} -> {new}")
            };
        let given = |value: &Option<String>| value.as_deref().map_or("nothing".into(), short);
        match self {
            Why::FirstTime => f.write_str("for the first time"),
            Why::Kind { old, new } => change(f, "kind", old, new),
            Why::StageVersion { old, new } => change(f, "version of the stage's code", old, new),
            Why::Param { path, old, new } => change(f, path, old, new),
            Why::Input { name, old, new } => {
                change(f, &format!("input {name}"), &given(old), &given(new))
            }
            Why::Tool { name, old, new } => {
                change(f, &format!("tool {name}"), &given(old), &given(new))
            }
            Why::Same { part } => write!(f, "the same work as {part}"),
            Why::Again => f.write_str("once more, to compare"),
            Why::Volatile => f.write_str("measured anew in every build"),
            Why::Unproved => f.write_str("what the cache has is not known to be what is pinned"),
            Why::OtherOutputs => f.write_str("what the cache has is not what `outputs` names"),
            Why::OutputGone { blob } => write!(f, "gone from the cache: {}", short(blob)),
        }
    }
}

/// A digest as people read it; anything else as it is.
fn short(text: &str) -> String {
    text.parse::<Digest>()
        .map_or_else(|_| text.into(), |digest| digest.short())
}

/// The first few reasons.
pub fn in_short(reasons: &[Why]) -> String {
    let mut shown: Vec<String> = reasons.iter().take(FEW).map(Why::to_string).collect();
    let more = reasons.len().saturating_sub(FEW);
    shown.extend((more > 0).then(|| format!("and {more} more")));
    shown.join("; ")
}
