//! The record of a build: its actions, their outputs and tools. It has no times and no paths, so
//! that equal builds have equal records.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::name::Name;
use super::outline::{Kept, Outline};
use crate::action::{ActionKey, Manifest, Part, PartName};
use crate::base::{CanonJson, Code, Context, Digest, Result, hash_bytes};
use crate::engine::{Built, CompletedStage};
use crate::plan::StageId;
use crate::store::{Disk, Sha256};

/// The version of the format that this kiln reads and writes.
pub(super) const VERSION: u32 = 1;

/// The record of a build. As JSON it is the receipt, as TOML the lock.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildRecord {
    /// The version of the format: [`VERSION`].
    pub version: u32,
    /// The name of the plan.
    pub plan: Name,
    /// The digest of the plan: see [`Outline::digest`].
    pub digest: Digest,
    /// Tool -> file -> digest, of the files that an action used.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, BTreeMap<String, Digest>>,
    /// The stages that were built.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stage: BTreeMap<Name, StageRecord>,
}

/// The record of a stage.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecord {
    /// The kind of the stage.
    pub kind: String,
    /// The version of the kind.
    pub version: u32,
    /// The digest of its parameters.
    pub params: Digest,
    /// What the plan writes out.
    pub keep: Kept,
    /// Whether its output has measured figures, whose last digits depend on the processor. They are
    /// not compared with a lock.
    #[serde(default, skip_serializing_if = "is_false")]
    pub measured: bool,
    /// The digest of its output: names, bytes and facts of all parts.
    pub output: Digest,
    /// The tools that its actions declare.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tools: BTreeSet<String>,
    /// Input -> the stages whose output it reads.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Vec<String>>,
    /// Part -> its action. The name is empty if it is the only part.
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
    /// The record of a build of `outline`. `kept` is what is written out, by stage.
    pub fn of(
        outline: &Outline,
        built: &Built,
        kept: &[(String, Manifest)],
        store: &Disk,
    ) -> Result<Self> {
        let mut record = BuildRecord {
            version: VERSION,
            plan: Name::new(&outline.plan)?,
            digest: outline.digest,
            tools: BTreeMap::new(),
            stage: BTreeMap::new(),
        };
        for (id, stage) in &outline.stages {
            let Some(completed) = built.completed.get(&StageId(id.clone())) else {
                continue;
            };
            let details = completed.details()?;
            for (tool, files) in &details.tools {
                let used = record.tools.entry(tool.clone()).or_default();
                used.extend(files.clone());
            }
            let stage = StageRecord {
                kind: stage.kind.clone(),
                version: stage.version,
                params: stage.params,
                keep: stage.keep.clone(),
                measured: stage.measured,
                output: output_digest(completed)?,
                tools: details.tools.keys().cloned().collect(),
                inputs: stage.inputs.clone(),
                actions: details.parts.iter().cloned().collect(),
                artifacts: BTreeMap::new(),
            };
            record.stage.insert(Name::new(id)?, stage);
        }
        for (id, manifest) in kept {
            if let Some(stage) = record.stage.get_mut(id.as_str()) {
                stage.artifacts = hash_parts(manifest, store)?;
            }
        }
        Ok(record)
    }

    /// The actions of all stages.
    pub fn actions(&self) -> impl Iterator<Item = ActionKey> {
        let stages = self.stage.values();
        stages.flat_map(|stage| stage.actions.values().copied())
    }

    /// The files that were written out, by path in the folder of artifacts.
    pub fn files(&self) -> BTreeMap<String, Artifact> {
        self.files_of(|_| true)
    }

    /// The files of the stages that `filter` accepts.
    pub fn files_of(&self, filter: impl Fn(&StageRecord) -> bool) -> BTreeMap<String, Artifact> {
        let mut files = BTreeMap::new();
        for (id, stage) in &self.stage {
            if filter(stage) {
                for (part, artifact) in &stage.artifacts {
                    files.insert(format!("{id}/{part}"), *artifact);
                }
            }
        }
        files
    }

    /// The SHA-256 sums for `sha256sum -c`. Names of parts have no characters that it escapes.
    pub fn sums(&self) -> String {
        let mut sums = String::new();
        for (path, artifact) in self.files() {
            sums += &format!("{}  {path}\n", artifact.sha256);
        }
        sums
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The digest of the output of a stage. It does not depend on where the bytes are stored.
fn output_digest(completed: &CompletedStage) -> Result<Digest> {
    let mut parts: BTreeMap<&PartName, (Digest, &CanonJson)> = BTreeMap::new();
    for (name, part) in &completed.details()?.manifest.parts {
        parts.insert(name, (part.content.digest, &part.facts));
    }
    let text = serde_json::to_vec(&parts)
        .context(Code::Record, || "serialize the output of a stage".into())?;
    Ok(hash_bytes(&text))
}

/// Hashes the parts of a manifest in parallel.
fn hash_parts(manifest: &Manifest, store: &Disk) -> Result<BTreeMap<PartName, Artifact>> {
    let parts: Vec<(&PartName, &Part)> = manifest.parts.iter().collect();
    let hash = |(name, part): &(&PartName, &Part)| {
        let artifact = Artifact {
            blake3: part.content.digest,
            sha256: Sha256::of(&part.content, store, store)?,
        };
        Ok(((*name).clone(), artifact))
    };
    parts.par_iter().map(hash).collect()
}
