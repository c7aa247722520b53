//! The record of a build: which actions made which bytes, with which tools. No times and no paths,
//! so that equal builds have equal records.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::name::Name;
use super::outline::{Kept, Outline};
use crate::action::{ActionKey, Manifest, PartName};
use crate::base::{CanonJson, Code, Context, Digest, Result, hash_bytes};
use crate::engine::{Built, CompletedStage};
use crate::plan::StageId;
use crate::store::{Disk, Sha256};

/// The form of the record that this kiln reads and writes.
pub const VERSION: u32 = 1;

/// What a build came to. As JSON it is the receipt, as TOML the lock.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRecord {
    /// The form of the record: [`VERSION`].
    pub version: u32,
    /// The name of the plan.
    pub plan: Name,
    /// Of what the plan says.
    pub digest: Digest,
    /// Tool -> file -> digest, of the files that some action really used.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, BTreeMap<String, Digest>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    /// What was made, by stage.
    pub stage: BTreeMap<Name, StageRecord>,
}

/// What is accounted for of a stage.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// The kind of the stage.
    pub kind: String,
    /// Of the kind's code.
    pub version: u32,
    /// Of its parameters as the plan has them.
    pub params: Digest,
    /// What the plan wants written out.
    pub keep: Kept,
    /// Whether it gives figures, whose last digits depend on the processor: a lock does not hold
    /// them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub measured: bool,
    /// Of all that it gives: names, bytes and facts.
    pub output: Digest,
    /// The tools that its actions declare.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tools: BTreeSet<String>,
    /// Input -> the stages that feed it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Vec<String>>,
    /// Part -> its action; the part of a stage with a single one has no name.
    pub actions: BTreeMap<String, ActionKey>,
    /// What was written out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub artifacts: BTreeMap<PartName, Artifact>,
}

/// A file that was written out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Its digest and length.
    pub blake3: Digest,
    /// Its SHA-256.
    pub sha256: Sha256,
}

impl BuildRecord {
    /// The record of a build of what `outline` says, of which `kept` is written out.
    pub fn of(
        outline: &Outline,
        built: &Built,
        kept: &[(String, Manifest)],
        store: &Disk,
    ) -> Result<Self> {
        let name = Name::new(&outline.plan)?;
        let mut record = BuildRecord {
            version: VERSION,
            plan: name,
            digest: outline.digest,
            tools: [].into(),
            stage: [].into(),
        };
        for (id, asked) in &outline.stages {
            let Some(completed) = built.completed.get(&StageId(id.clone())) else {
                continue;
            };
            let details = completed.details()?;
            for (tool, files) in &details.tools {
                record
                    .tools
                    .entry(tool.clone())
                    .or_default()
                    .extend(files.clone());
            }
            let made = StageRecord {
                kind: asked.kind.clone(),
                version: asked.version,
                params: asked.params,
                keep: asked.keep.clone(),
                measured: asked.measured,
                output: output(completed)?,
                tools: details.tools.keys().cloned().collect(),
                inputs: asked.inputs.clone(),
                actions: details.parts.iter().cloned().collect(),
                artifacts: BTreeMap::new(),
            };
            record.stage.insert(Name::new(id)?, made);
        }
        for (stage, manifest) in kept {
            if let Some(made) = record.stage.get_mut(stage.as_str()) {
                made.artifacts = artifacts(manifest, store)?;
            }
        }
        Ok(record)
    }

    /// Every action that it names.
    pub fn actions(&self) -> impl Iterator<Item = ActionKey> {
        self.stage
            .values()
            .flat_map(|made| made.actions.values().copied())
    }

    /// Every file that was written out, by its path from the folder of artifacts, sorted by it.
    pub fn files(&self) -> BTreeMap<String, Artifact> {
        self.files_of(|_| true)
    }

    /// The files of the stages that are `wanted`.
    pub fn files_of(&self, wanted: impl Fn(&StageRecord) -> bool) -> BTreeMap<String, Artifact> {
        let of_stage = |(stage, made): (&Name, &StageRecord)| -> Vec<(String, Artifact)> {
            made.artifacts
                .iter()
                .map(|(name, artifact)| (format!("{stage}/{name}"), *artifact))
                .collect()
        };
        self.stage
            .iter()
            .filter(|(_, made)| wanted(made))
            .flat_map(of_stage)
            .collect()
    }

    /// The sums as `sha256sum -c` reads them. No name of a part holds what would have to be
    /// escaped.
    pub fn sums(&self) -> String {
        self.files()
            .iter()
            .map(|(path, artifact)| format!("{}  {path}\n", artifact.sha256))
            .collect()
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// What a stage gives as one digest. Where the bytes lie does not change them.
fn output(completed: &CompletedStage) -> Result<Digest> {
    let parts = &completed.details()?.manifest.parts;
    let parts: BTreeMap<&PartName, (Digest, &CanonJson)> = parts
        .iter()
        .map(|(name, part)| (name, (part.content.digest, &part.facts)))
        .collect();
    let text = serde_json::to_vec(&parts)
        .context(Code::Record, || "serialize what a stage gives".into())?;
    Ok(hash_bytes(&text))
}

fn artifacts(manifest: &Manifest, store: &Disk) -> Result<BTreeMap<PartName, Artifact>> {
    let parts: Vec<_> = manifest.parts.iter().collect();
    let artifact = |(name, part): &(&PartName, &crate::action::Part)| {
        let artifact = Artifact {
            blake3: part.content.digest,
            sha256: Sha256::of(&part.content, store, store)?,
        };
        Ok(((*name).clone(), artifact))
    };
    parts.par_iter().map(artifact).collect()
}
