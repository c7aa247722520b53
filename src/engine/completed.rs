//! A complete stage: what its parts were, and the manifest that their outputs became.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::Task;
use crate::action::{Action, ActionKey, Manifest, Outputs, PartName};
use crate::base::{Code, Context, Digest, Problem, Result, hash_bytes};
use crate::store::{BlobList, Note};

/// A complete stage as one text, which is what the next build recalls instead of expanding the
/// stage and looking for each part. Three lines: the number of parts and the digest of the
/// manifest, the blobs that hold it, and the rest, which is read only if someone asks.
#[derive(Debug)]
pub struct CompletedStage {
    note: Note,
    parts: usize,
    output: Digest,
    details: OnceLock<StageDetails>,
}

/// All there is to know of a complete stage.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct StageDetails {
    /// What it gives.
    pub manifest: Manifest,
    /// Its parts: order name and key, in the order of the expansion.
    pub parts: Vec<(String, ActionKey)>,
    /// The digests of the tool files that its actions declare, by tool and file.
    pub tools: BTreeMap<String, BTreeMap<String, Digest>>,
}

/// One part of a stage that is to be sealed.
pub(super) struct CompletedOrder<'a> {
    pub(super) name: &'a str,
    pub(super) key: ActionKey,
    pub(super) action: &'a Action,
    pub(super) outputs: &'a Outputs,
}

impl StageDetails {
    /// Joins outputs under their orders' names: `ORDER/OUTPUT`, or `OUTPUT` where the order has no
    /// name.
    pub(super) fn of<'a>(orders: impl Iterator<Item = CompletedOrder<'a>>) -> Result<StageDetails> {
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
                    return Err(Problem::new(
                        Code::EngineSamePart,
                        format!("two outputs are called `{name}`"),
                    )
                    .help(
                        "a mistake of the stage kind: each output of a stage needs a name of its \
                         own",
                    ));
                }
                details.manifest.parts.insert(name, part.clone());
            }
            details.parts.push((order.name.into(), order.key));
            for (tool, files) in &order.action.tools {
                let digests = files
                    .iter()
                    .map(|(file, content)| (file.clone(), content.digest));
                details
                    .tools
                    .entry(tool.clone())
                    .or_default()
                    .extend(digests);
            }
        }
        Ok(details)
    }
}

impl CompletedStage {
    /// The stage of which `whole` is known.
    pub fn new(details: StageDetails) -> Result<CompletedStage> {
        let blobs = BlobList::of(
            details
                .manifest
                .parts
                .values()
                .map(|part| part.content.blob()),
        );
        let spell = || "serialize a complete stage".into();
        let output =
            hash_bytes(&serde_json::to_vec(&details.manifest).context(Code::EngineSeal, spell)?);
        let body = serde_json::to_string(&details).context(Code::EngineSeal, spell)?;
        let parts = details.parts.len();
        let note = Note::new(format!("{parts} {output}\n{}\n{body}\n", blobs.text()));
        Ok(CompletedStage {
            note,
            parts,
            output,
            details: details.into(),
        })
    }

    /// The stage that was noted; `None` if the note says something else.
    pub(super) fn read(note: Note) -> Option<CompletedStage> {
        let (parts, output) = note.text.lines().next()?.split_once(' ')?;
        let (parts, output) = (parts.parse().ok()?, output.parse().ok()?);
        Some(CompletedStage {
            note,
            parts,
            output,
            details: OnceLock::new(),
        })
    }

    /// Of all that is known.
    pub fn digest(&self) -> Digest {
        self.note.digest
    }

    /// Of its manifest: all that those who take from it see.
    pub fn output(&self) -> Digest {
        self.output
    }

    /// How many parts it has.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// All of it.
    pub fn details(&self) -> Result<&StageDetails> {
        if let Some(details) = self.details.get() {
            return Ok(details);
        }
        let body = self.note.text.lines().nth(2).unwrap_or_default();
        let details = serde_json::from_str(body)
            .context(Code::EngineSeal, || {
                "read a complete stage that an earlier build noted".into()
            })
            .map_err(|problem| {
                problem.help("remove the folder `notes` of the cache: it only saves time")
            })?;
        Ok(self.details.get_or_init(|| details))
    }

    /// What the next build recalls.
    pub(super) fn text(&self) -> &str {
        &self.note.text
    }

    /// The blobs that hold what it gives.
    pub(super) fn blobs(&self) -> BlobList<'_> {
        BlobList::read(self.note.text.lines().nth(1).unwrap_or_default())
    }
}

impl PartialEq for CompletedStage {
    fn eq(&self, other: &Self) -> bool {
        self.digest() == other.digest()
    }
}

/// Refuses two orders of one name: reasons and records are kept by name.
pub(super) fn check_names(tasks: &[Task]) -> Result<()> {
    let mut names = BTreeSet::new();
    match tasks.iter().find(|task| !names.insert(task.name.as_str())) {
        Some(task) => Err(Problem::new(
            Code::EngineSameOrder,
            format!("two orders are called `{}`", task.name),
        )
        .help("a mistake of the stage kind: each order of a stage needs a name of its own")),
        None => Ok(()),
    }
}
