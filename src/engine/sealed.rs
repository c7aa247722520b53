//! A complete stage: what its parts were, and the manifest that their outputs became.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Task;
use crate::action::{Action, ActionKey, Manifest, Outputs, PartName};
use crate::base::{Context, Digest, Problem, Result, hash_bytes};

/// What is known of a stage once all its parts are there. Its text is what the next build recalls instead of expanding
/// the stage and looking for each part.
#[derive(Clone, Debug, PartialEq)]
pub struct Sealed {
    /// Everything below, by its text.
    pub digest: Digest,
    /// What it gives.
    pub manifest: Manifest,
    /// Its parts: order name and key, in the order of the expansion.
    pub parts: Vec<(String, ActionKey)>,
    /// The digests of the tool files that its actions declare, by tool and file.
    pub tools: Tools,
}

type Tools = BTreeMap<String, BTreeMap<String, Digest>>;

#[derive(Serialize)]
struct Spelled<'a> {
    manifest: &'a Manifest,
    parts: &'a [(String, ActionKey)],
    tools: &'a Tools,
}

#[derive(Deserialize)]
struct Read {
    manifest: Manifest,
    parts: Vec<(String, ActionKey)>,
    tools: Tools,
}

/// One part of a stage that is to be sealed.
pub(super) struct Piece<'a> {
    pub(super) name: &'a str,
    pub(super) key: ActionKey,
    pub(super) action: &'a Action,
    pub(super) outputs: &'a Outputs,
}

impl Sealed {
    /// Joins outputs under their orders' names: `ORDER/OUTPUT`, or `OUTPUT` where the order has no name.
    pub(super) fn of<'a>(pieces: impl Iterator<Item = Piece<'a>>) -> Result<Sealed> {
        let mut sealed =
            Sealed { digest: hash_bytes(b""), manifest: Manifest::default(), parts: vec![], tools: Tools::new() };
        for piece in pieces {
            for (output, part) in piece.outputs {
                let name = match piece.name {
                    "" => output.clone(),
                    order => PartName::new(format!("{order}/{output}"))?,
                };
                if sealed.manifest.parts.contains_key(&name) {
                    return Err(Problem::new("kiln::engine::same_part", format!("two outputs are called `{name}`"))
                        .help("a mistake of the stage kind: each output of a stage needs a name of its own"));
                }
                sealed.manifest.parts.insert(name, part.clone());
            }
            sealed.parts.push((piece.name.into(), piece.key));
            for (tool, files) in &piece.action.tools {
                let digests = files.iter().map(|(file, content)| (file.clone(), content.digest));
                sealed.tools.entry(tool.clone()).or_default().extend(digests);
            }
        }
        sealed.digest = hash_bytes(sealed.text()?.as_bytes());
        Ok(sealed)
    }

    /// The one spelling, whose hash is the digest.
    pub(super) fn text(&self) -> Result<String> {
        let Sealed { manifest, parts, tools, .. } = self;
        serde_json::to_string(&Spelled { manifest, parts, tools })
            .context("kiln::engine::seal", || "spell a complete stage".into())
    }

    /// Reads what [`text`](Self::text) wrote; `digest` is that of `text`. `None` if it is something else.
    pub(super) fn read(digest: Digest, text: &str) -> Option<Sealed> {
        let Read { manifest, parts, tools } = serde_json::from_str(text).ok()?;
        Some(Sealed { digest, manifest, parts, tools })
    }

    /// The blobs that hold what it gives, each once.
    pub(super) fn blobs(&self) -> Vec<Digest> {
        let mut blobs: Vec<Digest> = self.manifest.parts.values().map(|part| part.content.blob()).collect();
        blobs.sort_unstable();
        blobs.dedup();
        blobs
    }
}

/// Refuses two orders of one name: reasons and records are kept by name.
pub(super) fn check_names(tasks: &[Task]) -> Result<()> {
    let mut names = BTreeSet::new();
    match tasks.iter().find(|task| !names.insert(task.name.as_str())) {
        Some(task) => Err(Problem::new("kiln::engine::same_order", format!("two orders are called `{}`", task.name))
            .help("a mistake of the stage kind: each order of a stage needs a name of its own")),
        None => Ok(()),
    }
}
