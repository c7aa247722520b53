//! The account of a build: which actions made which bytes, with which tools. No times and no paths,
//! so that equal builds have equal accounts.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::super::outline::{Kept, Outline};
use super::name::Name;
use crate::action::{ActionKey, Manifest, PartName};
use crate::base::{CanonJson, Context, Digest, Result, hash_bytes};
use crate::engine::{Built, Sealed};
use crate::plan::StageId;
use crate::store::{Disk, Sha256};

/// The form of the account that this kiln reads and writes.
pub(in crate::cli) const VERSION: u32 = 1;

/// What a build came to. As JSON it is the receipt, as TOML the lock.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct Account {
    pub(super) version: u32,
    pub(super) plan: Name,
    /// Of what the plan says.
    pub(super) digest: Digest,
    /// Tool -> file -> digest, of the files that some action really used.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) tools: BTreeMap<String, BTreeMap<String, Digest>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) stage: BTreeMap<Name, Made>,
}

/// What is accounted for of a stage.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Made {
    pub(super) kind: String,
    /// Of the kind's code.
    pub(super) version: u32,
    /// Of its parameters as the plan has them.
    pub(super) params: Digest,
    pub(super) keep: Kept,
    /// Whether it gives figures, whose last digits depend on the processor: a lock does not hold
    /// them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) measured: bool,
    /// Of all that it gives: names, bytes and facts.
    pub(super) gives: Digest,
    /// The tools that its actions declare.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) tools: BTreeSet<String>,
    /// Input -> the stages that feed it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) inputs: BTreeMap<String, Vec<String>>,
    /// Part -> its action; the part of a stage with a single one has no name.
    pub(super) actions: BTreeMap<String, ActionKey>,
    /// What was written out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) artifacts: BTreeMap<PartName, Artifact>,
}

/// A file that was written out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Artifact {
    pub(super) blake3: Digest,
    pub(super) sha256: Sha256,
}

impl Account {
    /// The account of a build of what `outline` says, of which `kept` is written out.
    pub(super) fn of(
        outline: &Outline,
        built: &Built,
        kept: &[(String, Manifest)],
        store: &Disk,
    ) -> Result<Self> {
        let name = Name::new(&outline.plan)?;
        let mut account = Account {
            version: VERSION,
            plan: name,
            digest: outline.digest,
            tools: [].into(),
            stage: [].into(),
        };
        for (id, asked) in &outline.stages {
            let Some(sealed) = built.sealed.get(&StageId(id.clone())) else {
                continue;
            };
            let whole = sealed.whole()?;
            for (tool, files) in &whole.tools {
                account
                    .tools
                    .entry(tool.clone())
                    .or_default()
                    .extend(files.clone());
            }
            let made = Made {
                kind: asked.kind.clone(),
                version: asked.version,
                params: asked.params,
                keep: asked.keep.clone(),
                measured: asked.measured,
                gives: gives(sealed)?,
                tools: whole.tools.keys().cloned().collect(),
                inputs: asked.inputs.clone(),
                actions: whole.parts.iter().cloned().collect(),
                artifacts: BTreeMap::new(),
            };
            account.stage.insert(Name::new(id)?, made);
        }
        for (stage, manifest) in kept {
            if let Some(made) = account.stage.get_mut(stage.as_str()) {
                made.artifacts = artifacts(manifest, store)?;
            }
        }
        Ok(account)
    }

    /// Every action that it names.
    pub(in crate::cli) fn actions(&self) -> impl Iterator<Item = ActionKey> {
        self.stage
            .values()
            .flat_map(|made| made.actions.values().copied())
    }

    /// Every file that was written out, by its path from the folder of artifacts, sorted by it.
    pub(super) fn files(&self) -> BTreeMap<String, Artifact> {
        self.files_of(|_| true)
    }

    /// The files of the stages that are `wanted`.
    pub(super) fn files_of(&self, wanted: impl Fn(&Made) -> bool) -> BTreeMap<String, Artifact> {
        let of_stage = |(stage, made): (&Name, &Made)| -> Vec<(String, Artifact)> {
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
    pub(super) fn sums(&self) -> String {
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
fn gives(sealed: &Sealed) -> Result<Digest> {
    let parts = &sealed.whole()?.manifest.parts;
    let parts: BTreeMap<&PartName, (Digest, &CanonJson)> = parts
        .iter()
        .map(|(name, part)| (name, (part.content.digest, &part.facts)))
        .collect();
    let text = serde_json::to_vec(&parts)
        .context("kiln::account", || "spell what a stage gives".into())?;
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
