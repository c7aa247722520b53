//! The manifests that a stage reads when it expands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{ArtifactKind, Content, Manifest};
use crate::base::{Code, Digest, Problem, Result};

/// The manifests of a stage's inputs by slot, and of its tools by name. Each slot has its producers
/// in the order of the plan.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Slot -> (stage, its manifest).
    pub slots: BTreeMap<String, Vec<(String, Manifest)>>,
    /// Stage -> the kind of its artifact, for all stages in the slots.
    pub artifacts: BTreeMap<String, ArtifactKind>,
    /// Tool -> its files.
    pub tools: BTreeMap<String, Manifest>,
    /// The local files that the stage reads.
    pub files: BTreeMap<PathBuf, Digest>,
}

/// A file of a tool that an action loads.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolFile {
    /// Tool name in the plan: `qnn`.
    pub tool: String,
    /// File name: `libQnnHtp.so`.
    pub name: String,
    /// Its bytes.
    pub content: Content,
}

impl Inputs {
    /// The manifest in a slot for one stage.
    pub fn one(&self, slot: &str) -> Result<&Manifest> {
        match self.optional(slot) {
            Some(manifest) => Ok(manifest),
            None => {
                let message = format!("the input `{slot}` is not given");
                Err(Problem::new(Code::InputMissing, message))
            }
        }
    }

    /// The manifest in a slot that may be empty.
    pub fn optional(&self, slot: &str) -> Option<&Manifest> {
        let (_, manifest) = self.slots.get(slot)?.first()?;
        Some(manifest)
    }

    /// All stages in a slot for many.
    pub fn many(&self, slot: &str) -> &[(String, Manifest)] {
        match self.slots.get(slot) {
            Some(stages) => stages,
            None => &[],
        }
    }

    /// The kind of artifact that a stage in a slot produces.
    pub fn artifact(&self, stage: &str) -> ArtifactKind {
        self.artifacts.get(stage).copied().unwrap_or_default()
    }

    /// The digest of a local file that the stage declared.
    pub fn file(&self, path: &Path) -> Result<Digest> {
        match self.files.get(path) {
            Some(digest) => Ok(*digest),
            None => {
                let message = format!("{} was not looked at", path.display());
                Err(Problem::new(Code::InputMissing, message))
            }
        }
    }

    /// The files `names` of tool `tool`, in whatever folder of the tool they are.
    pub fn tool_files(&self, tool: &str, names: &[&str]) -> Result<Vec<ToolFile>> {
        let Some(manifest) = self.tools.get(tool) else {
            let message = format!("the tool `{tool}` is not given");
            return Err(Problem::new(Code::ToolMissing, message));
        };
        let mut files = vec![];
        for name in names {
            files.push(find_tool_file(tool, manifest, name)?);
        }
        Ok(files)
    }
}

fn find_tool_file(tool: &str, manifest: &Manifest, name: &str) -> Result<ToolFile> {
    for (path, part) in &manifest.parts {
        if path.as_str().rsplit('/').next() == Some(name) {
            return Ok(ToolFile {
                tool: tool.into(),
                name: name.into(),
                content: part.content,
            });
        }
    }
    let files: Vec<&str> = manifest.parts.keys().map(|path| path.as_str()).collect();
    let message = format!("tool `{tool}` has no file `{name}`");
    Err(Problem::new(Code::ToolFileMissing, message).help(format!(
        "pin a version in [tools] that carries it; this one has: {}",
        files.join(", ")
    )))
}
