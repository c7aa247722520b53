//! The written artifacts, as the table at the end of a build lists them.

use serde::Serialize;

use crate::action::Manifest;
use crate::base::Digest;

/// A file of a stage's artifact, or a folder of it.
#[derive(Serialize)]
pub(super) struct Artifact {
    pub(super) stage: String,
    /// File name; a folder ends with `/`.
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// `None` for a folder.
    pub(super) digest: Option<Digest>,
    pub(super) files: usize,
}

/// The written files; the files of a folder are one entry.
pub(super) fn artifacts(kept: &[(String, Manifest)]) -> Vec<Artifact> {
    let mut artifacts: Vec<Artifact> = vec![];
    for (stage, manifest) in kept {
        for (name, part) in &manifest.parts {
            let Digest { size_bytes, .. } = part.content.digest;
            let (name, digest) = match name.as_str().split_once('/') {
                Some((folder, _)) => (format!("{folder}/"), None),
                None => (name.to_string(), Some(part.content.digest)),
            };
            if let Some(last) = artifacts.last_mut()
                && last.stage == *stage
                && last.name == name
            {
                last.size_bytes += size_bytes;
                last.files += 1;
                continue;
            }
            artifacts.push(Artifact {
                stage: stage.clone(),
                name,
                size_bytes,
                digest,
                files: 1,
            });
        }
    }
    artifacts
}
