//! The manifests a stage sees when it expands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{ArtifactKind, Manifest, Part, ToolFile};
use crate::base::{Code, Digest, Problem, Result};

/// The manifests of a stage's inputs by slot, and of its tools by name. Each slot holds the
/// stages that feed it, in the order in which the plan names them.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Slot -> (giving stage, its manifest).
    pub slots: BTreeMap<String, Vec<(String, Manifest)>>,
    /// Stage -> the artifact that it gives, of all stages in the slots.
    pub artifacts: BTreeMap<String, ArtifactKind>,
    /// Tool -> its files.
    pub tools: BTreeMap<String, Manifest>,
    /// The files of this machine that the stage said it reads.
    pub files: BTreeMap<PathBuf, Digest>,
}

impl Inputs {
    /// The manifest in a slot that takes one stage.
    pub fn one(&self, slot: &str) -> Result<&Manifest> {
        self.optional(slot).ok_or_else(|| {
            Problem::new(
                Code::InputMissing,
                format!("the input `{slot}` is not given"),
            )
        })
    }

    /// The manifest in a slot that may be empty.
    pub fn optional(&self, slot: &str) -> Option<&Manifest> {
        self.slots
            .get(slot)
            .and_then(|given| given.first())
            .map(|(_, manifest)| manifest)
    }

    /// All stages in a slot that takes many.
    pub fn many(&self, slot: &str) -> &[(String, Manifest)] {
        self.slots.get(slot).map_or(&[], Vec::as_slice)
    }

    /// The artifact that the stage `stage` of a slot gives.
    pub fn artifact(&self, stage: &str) -> ArtifactKind {
        self.artifacts.get(stage).copied().unwrap_or_default()
    }

    /// The digest of a file of this machine.
    pub fn file(&self, path: &Path) -> Result<Digest> {
        let digest = self.files.get(path).copied();
        digest.ok_or_else(|| {
            Problem::new(
                Code::InputMissing,
                format!("{} was not looked at", path.display()),
            )
        })
    }

    /// The files `names` of tool `tool`, found by file name wherever they lie in it.
    pub fn tool_files(&self, tool: &str, names: &[&str]) -> Result<Vec<ToolFile>> {
        let manifest = self.tools.get(tool).ok_or_else(|| {
            Problem::new(Code::ToolMissing, format!("the tool `{tool}` is not given"))
        })?;
        names
            .iter()
            .map(|name| find_tool_file(tool, manifest, name))
            .collect()
    }
}

fn find_tool_file(tool: &str, manifest: &Manifest, name: &str) -> Result<ToolFile> {
    let named = |path: &str| path.rsplit('/').next() == Some(name);
    let part: &Part = manifest
        .parts
        .iter()
        .find(|(path, _)| named(path.as_str()))
        .map(|(_, part)| part)
        .ok_or_else(|| {
            let files: Vec<&str> = manifest.parts.keys().map(|p| p.as_str()).collect();
            Problem::new(
                Code::ToolFileMissing,
                format!("tool `{tool}` has no file `{name}`"),
            )
            .help(format!(
                "pin a version in [tools] that carries it; this one has: {}",
                files.join(", ")
            ))
        })?;
    Ok(ToolFile {
        tool: tool.into(),
        name: name.into(),
        content: part.content,
    })
}
