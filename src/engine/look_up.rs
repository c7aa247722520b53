//! The cache of completed stages: one note has all parts of a stage that an earlier build
//! completed, so that it need not be expanded and its parts need not be looked for.
//!
//! The key of a stage covers everything that its expansion depends on: this program, its kind and
//! parameters, and the digests of its inputs, stages and files. An expansion is pure, so equal keys
//! have equal parts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::CompletedStage;
use crate::base::{Code, Context, Digest, Result, hash_bytes};
use crate::plan::{PlannedStage, StageId};
use crate::store::{BlobStore, InputSnapshot, Notes};

/// The cache of completed stages.
pub struct StageCache<'a> {
    /// Where they are stored.
    pub notes: &'a dyn Notes,
    /// Identifies this program: another version may expand a stage differently.
    pub program: Digest,
}

impl StageCache<'_> {
    /// The completed stage with this key, if all its blobs still exist.
    pub(super) fn look_up(
        &self,
        stage_key: &Digest,
        blobs: &dyn BlobStore,
    ) -> Result<Option<CompletedStage>> {
        if let Some(note) = self.notes.read(&self.note_key(stage_key))?
            && let Some(completed) = CompletedStage::from_note(note)
            && blobs.has_all(&completed.blobs())?
        {
            return Ok(Some(completed));
        }
        Ok(None)
    }

    /// Stores a completed stage.
    pub(super) fn put(&self, stage_key: &Digest, completed: &CompletedStage) -> Result<()> {
        self.notes
            .write(&self.note_key(stage_key), completed.text())
    }

    fn note_key(&self, stage_key: &Digest) -> Digest {
        hash_bytes(format!("{} {stage_key}", self.program).as_bytes())
    }
}

#[derive(Serialize)]
struct KeyParts<'a> {
    kind: &'a str,
    params: &'a Value,
    slots: &'a BTreeMap<String, Vec<StageId>>,
    tools: &'a BTreeMap<String, StageId>,
    producers: &'a [Digest],
    files: BTreeMap<&'a PathBuf, Digest>,
}

/// The key of `stage`, whose dependencies have the output digests `producers`, and which reads
/// `files`.
pub(super) fn stage_key(
    stage: &PlannedStage,
    producers: &[Digest],
    files: &BTreeMap<PathBuf, InputSnapshot>,
) -> Result<Digest> {
    let mut key = KeyParts {
        kind: &stage.kind,
        params: &stage.params,
        slots: &stage.slots,
        tools: &stage.tools,
        producers,
        files: BTreeMap::new(),
    };
    for (path, snapshot) in files {
        key.files.insert(path, snapshot.digest);
    }
    let text =
        serde_json::to_vec(&key).context(Code::EngineLookUp, || format!("ask for {}", stage.id))?;
    Ok(hash_bytes(&text))
}
