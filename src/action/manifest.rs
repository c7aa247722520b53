//! The output of a stage: named parts, each with content and facts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::{CanonJson, Code, Digest, Problem, Result};

/// The kind of artifact in a manifest: `gguf`, `onnx`, `context-bin`. The engine only compares it.
pub type ArtifactKind = &'static str;

/// The name of a part, and its relative path when written out: `weights/blk.0.attn_q.weight/codes`.
///
/// Never empty, absolute, or with an empty, `.` or `..` component; no control characters, `\` or
/// `:`. A component has at most 200 bytes and does not begin with `.kiln`, like the files that kiln
/// itself writes among artifacts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PartName(String);

impl PartName {
    /// Checks `name`; fails if it is not a valid part name.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let has_bad_character = name.contains(|c: char| c.is_control() || matches!(c, '\\' | ':'));
        if !has_bad_character && name.split('/').all(is_valid_component) {
            return Ok(PartName(name));
        }
        Err(Problem::new(
            Code::PartName,
            format!("`{}` cannot name a part", name.escape_debug()),
        )
        .help(
            "a part name is a relative path without `..`, control characters, `\\` or `:`, and \
             nothing in it is called `.kiln...`, as kiln's own files are",
        ))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether `component` may be a component of a part name.
fn is_valid_component(component: &str) -> bool {
    let prefix = component.get(..5).unwrap_or_default();
    !matches!(component, "" | "." | "..")
        && component.len() <= 200
        && !prefix.eq_ignore_ascii_case(".kiln")
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::borrow::Borrow<str> for PartName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for PartName {
    type Err = Problem;

    fn from_str(name: &str) -> Result<Self> {
        PartName::new(name)
    }
}

impl<'de> Deserialize<'de> for PartName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        PartName::new(name).map_err(serde::de::Error::custom)
    }
}

/// Whether the output `name` matches `pattern`: a name, or `FOLDER/` for all files in a folder.
pub fn matches_output(pattern: &str, name: &str) -> bool {
    if pattern.ends_with('/') {
        name.starts_with(pattern)
    } else {
        name == pattern
    }
}

/// A range of a larger blob. Not part of keys, because it does not identify the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The blob with the bytes.
    pub blob: Digest,
    /// Where they begin in the blob; the content's digest has their number.
    pub offset: u64,
}

/// The bytes of a part: a blob, or a range of a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    /// BLAKE3 and length of the bytes of the part.
    pub digest: Digest,
    /// Where they are, if they are part of a larger blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

impl Content {
    /// The blob that must exist for this content to be readable.
    pub fn blob(&self) -> Digest {
        match self.window {
            Some(window) => window.blob,
            None => self.digest,
        }
    }
}

impl From<Digest> for Content {
    fn from(digest: Digest) -> Self {
        Content {
            digest,
            window: None,
        }
    }
}

/// One output: its content, and facts that are hashed with it (shape, type, encoding).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The bytes.
    pub content: Content,
    /// What a consumer needs to know without reading them.
    #[serde(default)]
    pub facts: CanonJson,
}

/// The outputs of one action, by their names inside the action.
pub type Outputs = BTreeMap<PartName, Part>;

/// The output of a stage: the outputs of all its actions, under the names `ORDER/OUTPUT`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Every part, sorted by name.
    pub parts: BTreeMap<PartName, Part>,
}

impl Manifest {
    /// The part called `name`.
    pub fn get(&self, name: &str) -> Option<&Part> {
        self.parts.get(name)
    }

    /// The part called `name`. The problem lists some of the parts that exist.
    pub fn part(&self, name: &str) -> Result<&Part> {
        if let Some(part) = self.get(name) {
            return Ok(part);
        }
        let some: Vec<&str> = self.parts.keys().take(8).map(PartName::as_str).collect();
        let problem = Problem::new(Code::PartMissing, format!("there is no part `{name}`"));
        Err(problem.help(format!(
            "the manifest holds {} parts: {} ...",
            self.parts.len(),
            some.join(", ")
        )))
    }

    /// The only part; fails if there is none or more than one.
    pub fn only(&self) -> Result<(&PartName, &Part)> {
        let mut parts = self.parts.iter();
        match (parts.next(), parts.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(Problem::new(
                Code::PartCount,
                format!("expected one part, found {}", self.parts.len()),
            )),
        }
    }

    /// The parts below `folder`, by their names inside of it.
    pub fn under<'a, 'f>(
        &'a self,
        folder: &'f str,
    ) -> impl Iterator<Item = (&'a str, &'a Part)> + use<'a, 'f> {
        self.parts.iter().filter_map(move |(name, part)| {
            let inside = name.as_str().strip_prefix(folder)?.strip_prefix('/')?;
            Some((inside, part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_names_cannot_leave_their_folder() {
        for good in ["a", "weights/blk.0.attn_q.weight/codes", "näh/x y"] {
            assert!(PartName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "../a",
            "a/../b",
            ".",
            "a\\b",
            "c:a",
            "a\0",
            "a\nb",
            &"x".repeat(201),
        ] {
            assert!(PartName::new(bad).is_err(), "{bad}");
        }
    }
}
