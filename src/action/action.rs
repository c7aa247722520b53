//! The action. Its canonical text is hashed, stored, compared and sent.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Content, Window};
use crate::base::{CanonJson, Digest, hash_bytes};

/// Everything that can influence the outputs of one part of a stage, and nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// Stage kind: `requant`.
    pub stage: String,
    /// Version of that kind: a fix in a stage kind reruns this kind only.
    pub version: u32,
    /// The parameters resolved for this part.
    pub params: Value,
    /// Its inputs, by the names that its stage uses.
    pub inputs: BTreeMap<String, ActionInput>,
    /// The files of each tool that are loaded, by tool and file name.
    pub tools: BTreeMap<String, BTreeMap<String, Content>>,
    /// Where an external file comes from: a URL. Not part of the key, because it does not identify
    /// the bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

/// One input of an action. Its window is not part of the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionInput {
    /// BLAKE3 and length.
    pub digest: Digest,
    /// Where the bytes are, if they are part of a larger blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// The facts of the part that it reads.
    #[serde(default)]
    pub facts: CanonJson,
}

impl ActionInput {
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

/// The serialized form of an action. Fields are in the order of their names, like all keys of
/// canonical JSON.
#[derive(Serialize)]
struct CanonicalAction<'a> {
    inputs: BTreeMap<&'a str, CanonicalInput<'a>>,
    params: &'a Value,
    stage: &'a str,
    tools: BTreeMap<&'a str, BTreeMap<&'a str, &'a Digest>>,
    version: u32,
}

/// Without the window: where bytes are stored does not change them.
#[derive(Serialize)]
struct CanonicalInput<'a> {
    digest: &'a Digest,
    facts: &'a CanonJson,
}

impl Action {
    /// The action as canonical JSON.
    pub fn canonical_text(&self) -> String {
        let mut canonical = CanonicalAction {
            inputs: BTreeMap::new(),
            params: &self.params,
            stage: &self.stage,
            tools: BTreeMap::new(),
            version: self.version,
        };
        for (name, input) in &self.inputs {
            let ActionInput { digest, facts, .. } = input;
            canonical
                .inputs
                .insert(name, CanonicalInput { digest, facts });
        }
        for (tool, files) in &self.tools {
            let digests = canonical.tools.entry(tool).or_default();
            for (file, content) in files {
                digests.insert(file, &content.digest);
            }
        }
        serde_json::to_string(&canonical).expect("maps with text keys can be serialized")
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
        let input = ActionInput {
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
    fn the_text_is_canonical_json() {
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
    fn windows_and_origins_are_not_in_the_key() {
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
    fn digests_and_versions_are_in_the_key() {
        let mut other = action(0);
        other.inputs.get_mut("tensor").unwrap().digest = hash_bytes(b"other");
        assert_ne!(action(0).key(), other.key());
        let mut other = action(0);
        other.version = 2;
        assert_ne!(action(0).key(), other.key());
    }
}
