//! What a build writes out: what is kept of each complete stage, and what failed ones leave.

use std::collections::BTreeMap;
use std::path::Path;

use super::records::withdraw;
use super::session::Session;
use crate::action::{Content, Manifest, Part, PartName};
use crate::base::{CanonJson, Result};
use crate::engine::{Built, CompletedStage};
use crate::events::Failure;
use crate::plan::{Keep, Plan, PlannedStage};
use crate::store::{BlobStore, Links, Space, publish};

/// The manifests of the stages that are kept, cut down to the parts that are.
pub(super) fn kept(plan: &Plan, built: &Built) -> Result<Vec<(String, Manifest)>> {
    let mut all = vec![];
    for stage in &plan.stages {
        let Some(completed) = built.completed.get(&stage.id) else {
            continue;
        };
        all.extend(kept_of(stage, completed)?.map(|kept| (stage.id.to_string(), kept)));
    }
    Ok(all)
}

/// What is kept of `stage`, if anything is.
pub(super) fn kept_of(
    stage: &PlannedStage,
    completed: &CompletedStage,
) -> Result<Option<Manifest>> {
    if stage.keep == Keep::Nothing {
        return Ok(None);
    }
    let kept = completed
        .details()?
        .manifest
        .parts
        .iter()
        .filter(|(name, _)| stage.keep.takes(name.as_str()));
    let parts: BTreeMap<_, _> = kept
        .map(|(name, part)| (name.clone(), part.clone()))
        .collect();
    Ok((!parts.is_empty()).then_some(Manifest { parts }))
}

/// Writes out what is `kept`. Yields what had to be written, or `None` if nothing had to.
pub(super) fn write_out(
    blobs: &dyn BlobStore,
    kept: &[(String, Manifest)],
    out: &Path,
    links: Links,
) -> Result<Option<Space>> {
    let mut wrote = None;
    for (stage, manifest) in kept {
        add(&mut wrote, write_stage(blobs, stage, manifest, out, links)?);
    }
    Ok(wrote)
}

/// Writes out what failed stages leave, and says in their problems where.
pub(super) fn write_remaining(
    session: &Session,
    failures: &mut [Failure],
    out: &Path,
    links: Links,
) -> Result<()> {
    for Failure { part, problem, .. } in failures
        .iter_mut()
        .filter(|failure| !failure.problem.left.is_empty())
    {
        let planned = session
            .plan
            .stages
            .iter()
            .find(|planned| planned.id.0 == part.stage);
        let Some(planned) = planned.filter(|planned| planned.keep != Keep::Nothing) else {
            continue;
        };
        let mut manifest = Manifest::default();
        for (name, digest) in problem
            .left
            .iter()
            .filter(|(name, _)| planned.keep.takes(name))
        {
            let content = Content {
                digest: *digest,
                window: None,
            };
            manifest.parts.insert(
                PartName::new(name)?,
                Part {
                    content,
                    facts: CanonJson::default(),
                },
            );
        }
        if manifest.parts.is_empty() {
            continue;
        }
        write_stage(&session.store, &planned.id.0, &manifest, out, links)?;
        let names = manifest
            .parts
            .keys()
            .map(PartName::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        let help = problem
            .help
            .take()
            .map_or(String::new(), |help| format!("{help}; "));
        problem.help = Some(format!(
            "{help}see {names} in {}",
            out.join(&planned.id.0).display()
        ));
    }
    Ok(())
}

/// Makes `out/STAGE` hold just `kept`, which is something. Records that told of something else are
/// taken away.
pub(super) fn write_stage(
    blobs: &dyn BlobStore,
    stage: &str,
    kept: &Manifest,
    out: &Path,
    links: Links,
) -> Result<Option<Space>> {
    let wrote = publish(blobs, kept, &out.join(stage), links)?;
    if wrote.is_some() {
        withdraw(out)?;
    }
    Ok(wrote)
}

/// Adds what was written, if anything was.
pub(super) fn add(sum: &mut Option<Space>, more: Option<Space>) {
    if let Some(more) = more {
        *sum.get_or_insert_with(Space::default) += more;
    }
}
