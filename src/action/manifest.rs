//! What a stage gives: named parts, each a content and its facts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::{CanonJson, Code, Digest, Problem, Result};

/// What sort of artifact a manifest is, as stages call it: `gguf`, `onnx`, `context-bin`. The
/// engine only compares it.
pub type ArtifactKind = &'static str;

/// The name of a part, and its relative path when written out: `weights/blk.0.attn_q.weight/codes`.
///
/// Never empty, absolute, or with an empty, `.` or `..` component; no control characters, `\` or
/// `:`; a component has at most 200 bytes, and does not begin as the files do that kiln itself
/// writes among artifacts, `.kiln`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PartName(String);

impl PartName {
    /// Checks `name`.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let is_kilns = |component: &str| {
            component
                .get(..5)
                .is_some_and(|start| start.eq_ignore_ascii_case(".kiln"))
        };
        let component_is_good = |component: &str| {
            !matches!(component, "" | "." | "..") && component.len() <= 200 && !is_kilns(component)
        };
        let bad_character = |c: char| c.is_control() || matches!(c, '\\' | ':');
        if name.split('/').all(component_is_good) && !name.contains(bad_character) {
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
        PartName::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Whether `wanted` stands for the file `name`: by its name, or as `FOLDER/` for all that is in
/// there.
pub fn stands_for(wanted: &str, name: &str) -> bool {
    match wanted.ends_with('/') {
        true => name.starts_with(wanted),
        false => name == wanted,
    }
}

/// "These bytes of that blob": where, not what. Takes no part in keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The blob that holds the bytes.
    pub blob: Digest,
    /// Where they begin in it; how many there are is the content's own size.
    pub offset: u64,
}

/// What a part holds, and where its bytes lie if not in a blob of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Content {
    /// BLAKE3 and length of the part's own bytes.
    pub digest: Digest,
    /// Where they lie, when inside a larger blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
}

impl Content {
    /// The blob that must exist for this content to be readable.
    pub fn blob(&self) -> Digest {
        self.window.map_or(self.digest, |window| window.blob)
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
    /// What a reader must know without opening them.
    #[serde(default)]
    pub facts: CanonJson,
}

/// What one action gives, by the name inside the action.
pub type Outputs = BTreeMap<PartName, Part>;

/// What a whole stage gives: the outputs of all its actions, `ORDER/OUTPUT` by name.
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

    /// The part called `name`, or a problem that lists what is there.
    pub fn part(&self, name: &str) -> Result<&Part> {
        self.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.parts.keys().take(8).map(PartName::as_str).collect();
            Problem::new(Code::PartMissing, format!("there is no part `{name}`")).help(format!(
                "the manifest holds {} parts: {} ...",
                self.parts.len(),
                known.join(", ")
            ))
        })
    }

    /// The only part of a manifest that must have just one.
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

    /// The parts below `folder`, by their names inside it.
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
