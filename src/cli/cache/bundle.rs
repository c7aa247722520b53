//! `kiln cache export` and `kiln cache import`: copy results and their blobs between caches.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::session::Session;
use super::super::{Common, Exit, Failed, PlanArgs};
use crate::action::{ActionKey, Registry};
use crate::base::atomic::check_replaceable;
use crate::base::{Code, Context, Problem, Result, bytes, count};
use crate::engine::Built;
use crate::plan::Plan;
use crate::store::{Disk, Exported, Imported};

/// What to export, and the file to write.
#[derive(clap::Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    plan: PlanArgs,
    /// The file to write: an uncompressed tar archive
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// What to import.
#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// A file that `kiln cache export` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Writes the results that a build of the plan would find in the cache.
pub(super) fn export(
    args: &ExportArgs,
    common: &Common,
    stages: &Registry,
) -> Result<Exit, Failed> {
    let session = Session::open(&args.plan, &[], common, stages)?;
    let built = session.dry_run()?;
    let mut keys: BTreeSet<ActionKey> = BTreeSet::new();
    for part in &built.parts {
        if part.state.outputs().is_some() {
            keys.insert(part.task.key);
        }
    }
    let missing = missing_stages(&session.plan, &built);
    if keys.is_empty() {
        let message = format!(
            "the cache has no results of the plan `{}`",
            session.plan.name
        );
        let help =
            "build it first, with the same --set and --cache; `kiln plan` shows what is missing";
        return Err(Problem::new(Code::CallNotBuilt, message).help(help).into());
    }
    session
        .output_paths()
        .reserve_file("the bundle", &args.file)?;
    check_replaceable(&args.file)
        .context(Code::BundleIo, || format!("write {}", args.file.display()))?;
    let exported = session.store.export(&keys, &args.file)?;
    common.print(&if common.json {
        let mut line = json!(exported);
        line["missing_stages"] = json!(missing);
        format!("{line}\n")
    } else {
        export_text(&exported, &args.file, &missing)
    });
    Ok(Exit::Done)
}

fn export_text(exported: &Exported, file: &Path, missing: &[&str]) -> String {
    let mut text = format!(
        "{} and {}, {}, written to {}\n",
        count(exported.results, "result"),
        count(exported.blobs, "blob"),
        bytes(exported.blob_bytes),
        file.display()
    );
    if !missing.is_empty() {
        let missing = missing.join(", ");
        text += &format!("results are missing, which a build will have to make: {missing}\n");
    }
    text
}

/// The stages of which results are missing in the cache.
fn missing_stages<'a>(plan: &'a Plan, built: &Built) -> Vec<&'a str> {
    let mut missing = vec![];
    for stage in &plan.stages {
        if !built.completed.contains_key(&stage.id) {
            missing.push(stage.id.0.as_str());
        }
    }
    missing
}

/// Adds new results to the cache, which is created if it does not exist.
pub(super) fn import(args: &ImportArgs, common: &Common) -> Result<Exit> {
    let imported = Disk::open(&common.cache)?.import(&args.file)?;
    common.print(&if common.json {
        format!("{}\n", json!(imported))
    } else {
        import_text(&imported)
    });
    Ok(Exit::Done)
}

fn import_text(imported: &Imported) -> String {
    let Imported {
        results,
        blobs,
        blob_bytes,
        known_results,
        known_blobs,
        incomplete_results,
    } = *imported;
    let mut text = format!(
        "{} and {}, {}, added to the cache\n",
        count(results, "result"),
        count(blobs, "blob"),
        bytes(blob_bytes)
    );
    if known_results + known_blobs > 0 {
        let (results, blobs) = (count(known_results, "result"), count(known_blobs, "blob"));
        text += &format!("{results} and {blobs} were already in the cache\n");
    }
    if incomplete_results > 0 {
        text += &format!(
            "{} skipped: the file lacks some of their blobs\n",
            count(incomplete_results, "result")
        );
    }
    text
}
