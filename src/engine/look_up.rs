//! What an earlier build left complete need not be expanded and looked for part by part: one note
//! says it all.
//!
//! A stage is asked for by a question: what expands it (this very program), its kind and
//! parameters, and the digests of all it takes from: stages and files. An expansion is pure, so the
//! same question has the same answer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::CompletedStage;
use crate::base::{Code, Context, Digest, Result, hash_bytes};
use crate::plan::{PlannedStage, StageId};
use crate::store::{BlobStore, Notes, Watched};

/// The memory of complete stages.
pub struct Memory<'a> {
    /// Where it is kept.
    pub notes: &'a dyn Notes,
    /// What this program is: what another one noted about expansions, this one would not believe.
    pub program: Digest,
}

impl Memory<'_> {
    /// The stage that `question` asks for as it was left, if all it gave is still there.
    pub(super) fn look_up(
        &self,
        question: &Digest,
        blobs: &dyn BlobStore,
    ) -> Result<Option<CompletedStage>> {
        let note = self.notes.read(&self.to_this_program(question))?;
        let Some(completed) = note.and_then(CompletedStage::read) else {
            return Ok(None);
        };
        Ok(blobs.has_all(&completed.blobs())?.then_some(completed))
    }

    /// Remembers a complete stage.
    pub(super) fn note(&self, question: &Digest, completed: &CompletedStage) -> Result<()> {
        self.notes
            .write(&self.to_this_program(question), completed.text())
    }

    fn to_this_program(&self, question: &Digest) -> Digest {
        hash_bytes(format!("{} {question}", self.program).as_bytes())
    }
}

#[derive(Serialize)]
struct Question<'a> {
    kind: &'a str,
    params: &'a Value,
    slots: &'a BTreeMap<String, Vec<StageId>>,
    tools: &'a BTreeMap<String, StageId>,
    producers: &'a [Digest],
    files: BTreeMap<&'a PathBuf, Digest>,
}

/// What asks for `stage`, which takes from complete stages of the digests `givers` and from
/// `files`.
pub(super) fn question(
    stage: &PlannedStage,
    producers: &[Digest],
    files: &BTreeMap<PathBuf, Watched>,
) -> Result<Digest> {
    let question = Question {
        kind: &stage.kind,
        params: &stage.params,
        slots: &stage.slots,
        tools: &stage.tools,
        producers,
        files: files
            .iter()
            .map(|(path, file)| (path, file.digest))
            .collect(),
    };
    let text = serde_json::to_vec(&question)
        .context(Code::EngineRecall, || format!("ask for {}", stage.id))?;
    Ok(hash_bytes(&text))
}
