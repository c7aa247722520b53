//! The receipt: which actions made which bytes, with which tools. No times and no paths, so that equal
//! builds have equal receipts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::whole::write_whole;
use crate::action::{ActionKey, Manifest};
use crate::base::{Context, Digest, Result};
use crate::engine::Built;
use crate::plan::Plan;

/// What lies in `receipt.json` beside the stages' folders.
#[derive(Serialize)]
pub(super) struct Receipt<'a> {
    plan: &'a str,
    stages: BTreeMap<&'a str, Made<'a>>,
    /// Tool -> file -> digest, of the files that some action really used.
    tools: BTreeMap<&'a str, BTreeMap<&'a str, Digest>>,
}

#[derive(Serialize, Default)]
struct Made<'a> {
    kind: &'a str,
    /// Part -> its action; the part of a stage with a single one has no name.
    actions: BTreeMap<&'a str, ActionKey>,
    /// What was written out.
    artifacts: BTreeMap<&'a str, Digest>,
}

impl<'a> Receipt<'a> {
    /// The receipt of a whole build, of which `kept` is written out.
    pub(super) fn of(plan: &'a Plan, built: &'a Built, kept: &'a [(String, Manifest)]) -> Result<Self> {
        let mut stages: BTreeMap<&str, Made> = BTreeMap::new();
        for stage in &plan.stages {
            stages.entry(&stage.id.0).or_default().kind = &stage.kind;
        }
        let mut tools: BTreeMap<&str, BTreeMap<&str, Digest>> = BTreeMap::new();
        for (stage, sealed) in &built.sealed {
            let whole = sealed.whole()?;
            let actions = whole.parts.iter().map(|(part, key)| (part.as_str(), *key));
            stages.entry(&stage.0).or_default().actions.extend(actions);
            for (tool, files) in &whole.tools {
                tools.entry(tool).or_default().extend(files.iter().map(|(file, digest)| (file.as_str(), *digest)));
            }
        }
        for (stage, manifest) in kept {
            let digests = manifest.parts.iter().map(|(name, part)| (name.as_str(), part.content.digest));
            stages.entry(stage).or_default().artifacts.extend(digests);
        }
        Ok(Receipt { plan: &plan.name, stages, tools })
    }

    /// Puts it into `folder`, whole or not at all; yields whether another one, or none, was there.
    pub(super) fn write(&self, folder: &Path) -> Result<bool> {
        let path = folder.join("receipt.json");
        let failed = || format!("write {}", path.display());
        let mut text = serde_json::to_vec_pretty(self).context("kiln::publish::receipt", failed)?;
        text.push(b'\n');
        if fs::read(&path).is_ok_and(|old| old == text) {
            return Ok(false);
        }
        write_whole(&path, &text).context("kiln::publish::receipt", failed)?;
        Ok(true)
    }
}

/// A file of a stage's artifact, or a folder of it.
#[derive(Serialize)]
pub(super) struct Artifact {
    pub(super) stage: String,
    /// File name; a folder ends with `/`.
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// Of a file.
    pub(super) digest: Option<Digest>,
    pub(super) files: usize,
}

/// What is written out, with each folder as one.
pub(super) fn artifacts(kept: &[(String, Manifest)]) -> Vec<Artifact> {
    let mut artifacts: Vec<Artifact> = vec![];
    for (stage, manifest) in kept {
        for (name, part) in &manifest.parts {
            let Digest { size_bytes, .. } = part.content.digest;
            let (name, digest) = match name.as_str().split_once('/') {
                Some((folder, _)) => (format!("{folder}/"), None),
                None => (name.to_string(), Some(part.content.digest)),
            };
            match artifacts.last_mut().filter(|last| last.stage == *stage && last.name == name) {
                Some(folder) => {
                    folder.size_bytes += size_bytes;
                    folder.files += 1;
                }
                None => artifacts.push(Artifact { stage: stage.clone(), name, size_bytes, digest, files: 1 }),
            }
        }
    }
    artifacts
}
