//! The action: one canonical text that is hashed, stored, compared and sent.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Content, Window};
use crate::base::{CanonJson, Digest, hash_bytes};

/// Everything that may influence the outputs of one part of a stage, and nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// Stage kind: `requant`.
    pub stage: String,
    /// Version of that kind: a fix in a stage redoes its work and only its work.
    pub version: u32,
    /// The parameters resolved for this part.
    pub params: Value,
    /// What it reads, by the name its stage calls it.
    pub inputs: BTreeMap<String, Ingredient>,
    /// The files of each tool that are really used, by tool and file name.
    pub tools: BTreeMap<String, BTreeMap<String, Content>>,
    /// Where to get what it asks for, if that lies outside: a URL. Says how to reach it, not what
    /// it is: no part of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

/// One input of an action. Its window says where the bytes lie and is no part of the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ingredient {
    /// BLAKE3 and length.
    pub digest: Digest,
    /// Where the bytes lie, when inside a larger blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// What its maker said about it.
    #[serde(default)]
    pub facts: CanonJson,
}

impl Ingredient {
    /// The content, for reading.
    pub fn content(&self) -> Content {
        Content {
            digest: self.digest,
            window: self.window,
        }
    }
}

/// The digest of an action's canonical text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActionKey(pub Digest);

impl fmt::Display for ActionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ActionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How an action is spelled: fields in the order of their names, like all keys of a canonical text.
#[derive(Serialize)]
struct Spelled<'a> {
    inputs: BTreeMap<&'a String, SpelledInput<'a>>,
    params: &'a Value,
    stage: &'a str,
    tools: BTreeMap<&'a String, BTreeMap<&'a String, &'a Digest>>,
    version: u32,
}

/// Without its window: where bytes lie does not change them.
#[derive(Serialize)]
struct SpelledInput<'a> {
    digest: &'a Digest,
    facts: &'a CanonJson,
}

impl Action {
    /// The one spelling of this action.
    pub fn canonical_text(&self) -> String {
        let inputs = self
            .inputs
            .iter()
            .map(|(name, Ingredient { digest, facts, .. })| (name, SpelledInput { digest, facts }));
        let tools = self.tools.iter().map(|(tool, files)| {
            (
                tool,
                files
                    .iter()
                    .map(|(file, content)| (file, &content.digest))
                    .collect(),
            )
        });
        let spelled = Spelled {
            inputs: inputs.collect(),
            params: &self.params,
            stage: &self.stage,
            tools: tools.collect(),
            version: self.version,
        };
        serde_json::to_string(&spelled).expect("maps with text as keys have a spelling")
    }

    /// The cache key.
    pub fn key(&self) -> ActionKey {
        ActionKey(hash_bytes(self.canonical_text().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn action(offset: u64) -> Action {
        let window = Some(Window {
            blob: hash_bytes(b"file"),
            offset,
        });
        let input = Ingredient {
            digest: hash_bytes(b"tensor"),
            window,
            facts: CanonJson::default(),
        };
        Action {
            stage: "requant".into(),
            version: 1,
            params: json!({"scheme": "native"}),
            inputs: [("tensor".to_string(), input)].into(),
            tools: BTreeMap::new(),
            origin: None,
        }
    }

    #[test]
    fn the_text_is_spelled_as_any_canonical_json() {
        let text = action(0).canonical_text();
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap().to_string(),
            text
        );
        assert!(
            text.starts_with(r#"{"inputs":{"tensor":{"digest":"b3:"#)
                && text.ends_with(r#""version":1}"#),
            "{text}"
        );
    }

    #[test]
    fn where_bytes_lie_is_not_in_the_key() {
        assert_eq!(action(0).key(), action(64).key());
        assert_eq!(
            action(0).key(),
            Action {
                origin: Some("file:/home/me/clay".into()),
                ..action(0)
            }
            .key()
        );
    }

    #[test]
    fn what_they_are_is() {
        let mut other = action(0);
        other.inputs.get_mut("tensor").unwrap().digest = hash_bytes(b"other");
        assert_ne!(action(0).key(), other.key());
        let mut other = action(0);
        other.version = 2;
        assert_ne!(action(0).key(), other.key());
    }
}
