//! Completed stages: the parts of a stage, and the manifest of their outputs.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::action::{Action, ActionKey, Manifest, Outputs, PartName};
use crate::base::{Code, Context, Digest, Problem, Result, hash_bytes};
use crate::store::{BlobList, Note};

/// A completed stage as text. The next build looks it up instead of expanding the stage and looking
/// for each part. The text has three lines: the number of parts and the digest of the manifest; the
/// blobs with the outputs; and the [details](StageDetails), which are parsed only when needed.
#[derive(Debug)]
pub struct CompletedStage {
    note: Note,
    parts: usize,
    output: Digest,
    details: OnceLock<StageDetails>,
}

/// The details of a completed stage.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct StageDetails {
    /// The output.
    pub manifest: Manifest,
    /// The parts: order name and key, in the order of the expansion.
    pub parts: Vec<(String, ActionKey)>,
    /// The digests of the tool files that its actions declare, by tool and file.
    pub tools: BTreeMap<String, BTreeMap<String, Digest>>,
}

/// One finished part of a stage.
pub(super) struct CompletedOrder<'a> {
    pub(super) name: &'a str,
    pub(super) key: ActionKey,
    pub(super) action: &'a Action,
    pub(super) outputs: &'a Outputs,
}

impl StageDetails {
    /// The details of a stage with the parts `orders`. Outputs are named `ORDER/OUTPUT`, or
    /// `OUTPUT` if the order has no name.
    pub(super) fn new(orders: &[CompletedOrder]) -> Result<StageDetails> {
        let mut details = StageDetails {
            manifest: Manifest::default(),
            parts: vec![],
            tools: BTreeMap::new(),
        };
        for order in orders {
            for (output, part) in order.outputs {
                let name = match order.name {
                    "" => output.clone(),
                    order => PartName::new(format!("{order}/{output}"))?,
                };
                if details.manifest.parts.contains_key(&name) {
                    return Err(same_part(&name));
                }
                details.manifest.parts.insert(name, part.clone());
            }
            details.parts.push((order.name.into(), order.key));
            for (tool, files) in &order.action.tools {
                let digests = details.tools.entry(tool.clone()).or_default();
                for (file, content) in files {
                    digests.insert(file.clone(), content.digest);
                }
            }
        }
        Ok(details)
    }
}

fn same_part(name: &PartName) -> Problem {
    Problem::new(
        Code::EngineSamePart,
        format!("two outputs are called `{name}`"),
    )
    .help("a mistake of the stage kind: each output of a stage needs a name of its own")
}

impl CompletedStage {
    /// The completed stage with these details.
    pub fn new(details: StageDetails) -> Result<CompletedStage> {
        let failed = || "serialize a complete stage".into();
        let contents = details.manifest.parts.values().map(|part| part.content);
        let blobs = BlobList::new(contents.map(|content| content.blob()));
        let output = hash_bytes(
            &serde_json::to_vec(&details.manifest).context(Code::EngineCompleted, failed)?,
        );
        let body = serde_json::to_string(&details).context(Code::EngineCompleted, failed)?;
        let parts = details.parts.len();
        let note = Note::new(format!("{parts} {output}\n{}\n{body}\n", blobs.text()));
        Ok(CompletedStage {
            note,
            parts,
            output,
            details: details.into(),
        })
    }

    /// Parses the text of a completed stage; `None` if the note has other text.
    pub(super) fn from_note(note: Note) -> Option<CompletedStage> {
        let (parts, output) = note.text.lines().next()?.split_once(' ')?;
        let (parts, output) = (parts.parse().ok()?, output.parse().ok()?);
        Some(CompletedStage {
            note,
            parts,
            output,
            details: OnceLock::new(),
        })
    }

    /// The digest of the text.
    pub fn digest(&self) -> Digest {
        self.note.digest
    }

    /// The digest of the manifest, which is all that consumers use.
    pub fn output(&self) -> Digest {
        self.output
    }

    /// The number of parts.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// The details.
    pub fn details(&self) -> Result<&StageDetails> {
        if let Some(details) = self.details.get() {
            return Ok(details);
        }
        let body = self.note.text.lines().nth(2).unwrap_or_default();
        match serde_json::from_str(body).context(Code::EngineCompleted, || {
            "read a complete stage that an earlier build noted".into()
        }) {
            Ok(details) => Ok(self.details.get_or_init(|| details)),
            Err(problem) => {
                Err(problem.help("remove the folder `notes` of the cache: it only saves time"))
            }
        }
    }

    /// The text.
    pub(super) fn text(&self) -> &str {
        &self.note.text
    }

    /// The blobs with its outputs.
    pub(super) fn blobs(&self) -> BlobList<'_> {
        BlobList::from_text(self.note.text.lines().nth(1).unwrap_or_default())
    }
}

impl PartialEq for CompletedStage {
    fn eq(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}
