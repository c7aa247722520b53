//! Writing of artifacts: the kept parts of complete stages, and the partial outputs of failed ones.

use std::path::Path;

use super::records::remove_records;
use super::session::Session;
use crate::action::{Content, Manifest, Part, PartName};
use crate::base::{CanonJson, Result};
use crate::engine::{Built, CompletedStage};
use crate::events::Failure;
use crate::plan::{Keep, Plan, PlannedStage};
use crate::store::{BlobStore, Links, Space, publish};

/// The kept parts of all complete stages, with the names of the stages.
pub(super) fn kept_manifests(plan: &Plan, built: &Built) -> Result<Vec<(String, Manifest)>> {
    let mut manifests = vec![];
    for stage in &plan.stages {
        if let Some(completed) = built.completed.get(&stage.id)
            && let Some(manifest) = kept_manifest(stage, completed)?
        {
            manifests.push((stage.id.to_string(), manifest));
        }
    }
    Ok(manifests)
}

/// The kept parts of `stage`; `None` if there are none.
pub(super) fn kept_manifest(
    stage: &PlannedStage,
    completed: &CompletedStage,
) -> Result<Option<Manifest>> {
    if stage.keep == Keep::Nothing {
        return Ok(None);
    }
    let mut kept = Manifest::default();
    for (name, part) in &completed.details()?.manifest.parts {
        if stage.keep.takes(name.as_str()) {
            kept.parts.insert(name.clone(), part.clone());
        }
    }
    if kept.parts.is_empty() {
        return Ok(None);
    }
    Ok(Some(kept))
}

/// Writes the artifacts of all stages in `kept`. Returns the space of what was written; `None` if
/// everything was up to date.
pub(super) fn write_artifacts(
    blobs: &dyn BlobStore,
    kept: &[(String, Manifest)],
    out: &Path,
    links: Links,
) -> Result<Option<Space>> {
    let mut written = None;
    for (stage, manifest) in kept {
        add_space(
            &mut written,
            write_stage(blobs, stage, manifest, out, links)?,
        );
    }
    Ok(written)
}

/// Writes the files that failed stages left for the reader, and adds their path to the help of the
/// problems.
pub(super) fn write_partial_outputs(
    session: &Session,
    failures: &mut [Failure],
    out: &Path,
    links: Links,
) -> Result<()> {
    for Failure { part, problem, .. } in failures {
        let Some(stage) = session.stage(&part.stage) else {
            continue;
        };
        if stage.keep == Keep::Nothing {
            continue;
        }
        let mut manifest = Manifest::default();
        let mut names = vec![];
        for (name, digest) in problem.left.iter() {
            if !stage.keep.takes(name) {
                continue;
            }
            let content = Content {
                digest: *digest,
                window: None,
            };
            let facts = CanonJson::default();
            manifest
                .parts
                .insert(PartName::new(name)?, Part { content, facts });
            names.push(name.as_str());
        }
        if names.is_empty() {
            continue;
        }
        write_stage(&session.store, &stage.id.0, &manifest, out, links)?;
        let folder = out.join(&stage.id.0);
        let see = format!("see {} in {}", names.join(", "), folder.display());
        problem.help = match problem.help.take() {
            Some(help) => Some(format!("{help}; {see}")),
            None => Some(see),
        };
    }
    Ok(())
}

/// Makes `kept` the content of the folder `out/STAGE`. If that changes something, the records in
/// `out` are no longer true and are removed.
pub(super) fn write_stage(
    blobs: &dyn BlobStore,
    stage: &str,
    kept: &Manifest,
    out: &Path,
    links: Links,
) -> Result<Option<Space>> {
    let written = publish(blobs, kept, &out.join(stage), links)?;
    if written.is_some() {
        remove_records(out)?;
    }
    Ok(written)
}

/// Adds the space of another write to `sum`, where `None` means that nothing was written.
pub(super) fn add_space(sum: &mut Option<Space>, more: Option<Space>) {
    if let Some(more) = more {
        *sum.get_or_insert_with(Space::default) += more;
    }
}
