//! What a build writes out: what is kept of each complete stage, and what failed ones leave.

use std::collections::BTreeMap;
use std::path::Path;

use super::papers::withdraw;
use super::workbench::Workbench;
use crate::action::{Content, Manifest, Part, PartName};
use crate::base::{CanonJson, Digest, Problem, Result};
use crate::engine::{Built, Sealed};
use crate::plan::{Keep, Plan, PlannedStage};
use crate::store::{BlobStore, Links, Space, publish};

/// The manifests of the stages that are kept, cut down to the parts that are.
pub(super) fn kept(plan: &Plan, built: &Built) -> Result<Vec<(String, Manifest)>> {
    let mut all = vec![];
    for stage in &plan.stages {
        let Some(sealed) = built.sealed.get(&stage.id) else { continue };
        let kept = kept_of(stage, sealed)?;
        if !kept.parts.is_empty() {
            all.push((stage.id.to_string(), kept));
        }
    }
    Ok(all)
}

/// What is kept of `stage`.
pub(super) fn kept_of(stage: &PlannedStage, sealed: &Sealed) -> Result<Manifest> {
    if stage.keep == Keep::Nothing {
        return Ok(Manifest::default());
    }
    let kept = sealed.whole()?.manifest.parts.iter().filter(|(name, _)| stage.keep.takes(name.as_str()));
    Ok(Manifest { parts: kept.map(|(name, part)| (name.clone(), part.clone())).collect() })
}

/// Writes out what is kept of every complete stage. Yields what had to be written, or `None` if nothing had to.
pub(super) fn write_out(bench: &Workbench, built: &Built, out: &Path, links: Links) -> Result<Option<Space>> {
    let mut wrote = None;
    for stage in &bench.plan.stages {
        if let Some(sealed) = built.sealed.get(&stage.id) {
            add(&mut wrote, write_stage(&bench.store, stage, &kept_of(stage, sealed)?, out, links)?);
        }
    }
    Ok(wrote)
}

/// Writes out what failed stages leave, and says in their problems where.
pub(super) fn write_left(
    bench: &Workbench,
    left: BTreeMap<String, BTreeMap<String, Digest>>,
    out: &Path,
    links: Links,
    problems: &mut [Problem],
) -> Result<()> {
    for (stage, files) in left {
        let Some(stage) = bench.plan.stages.iter().find(|planned| planned.id.0 == stage) else { continue };
        let mut manifest = Manifest::default();
        for (name, digest) in files.iter().filter(|(name, _)| stage.keep.takes(name)) {
            let content = Content { digest: *digest, window: None };
            manifest.parts.insert(PartName::new(name)?, Part { content, facts: CanonJson::default() });
        }
        write_stage(&bench.store, stage, &manifest, out, links)?;
        for problem in problems.iter_mut().filter(|problem| problem.left == files && !manifest.parts.is_empty()) {
            let names = manifest.parts.keys().map(PartName::as_str).collect::<Vec<_>>().join(", ");
            let folder = out.join(stage.id.to_string());
            let help = problem.help.take().map_or(String::new(), |help| format!("{help}; "));
            problem.help = Some(format!("{help}see {names} in {}", folder.display()));
        }
    }
    Ok(())
}

/// Makes `out/STAGE` hold just `kept`. Papers that told of something else are taken away.
pub(super) fn write_stage(
    blobs: &dyn BlobStore,
    stage: &PlannedStage,
    kept: &Manifest,
    out: &Path,
    links: Links,
) -> Result<Option<Space>> {
    if kept.parts.is_empty() {
        return Ok(None);
    }
    let wrote = publish(blobs, kept, &out.join(stage.id.to_string()), links)?;
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
