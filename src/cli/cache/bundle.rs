//! `kiln cache export` and `kiln cache import`: results and their blobs from one cache to another.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::json;

use super::super::session::Session;
use super::super::{Common, Exit, Failed, PlanArgs};
use crate::action::{ActionKey, Registry};
use crate::base::atomic::check_replaceable;
use crate::base::{Code, Context, Problem, Result, bytes, count};
use crate::engine::Built;
use crate::plan::Plan;
use crate::store::{Disk, Exported, Imported};

/// What to export, and where to.
#[derive(clap::Args)]
pub struct ExportArgs {
    #[command(flatten)]
    plan: PlanArgs,
    /// The file to write, an uncompressed tar
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// What to import.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// A file that `kiln cache export` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Writes what a build of the plan would find, so that it finds it elsewhere too.
pub(super) fn export(
    args: &ExportArgs,
    common: &Common,
    stages: &Registry,
) -> Result<Exit, Failed> {
    let session = Session::open(&args.plan, &[], common, stages)?;
    let built = session.dry_run()?;
    let done = built
        .parts
        .iter()
        .filter(|part| part.state.outputs().is_some());
    let keys: BTreeSet<ActionKey> = done.map(|part| part.task.key).collect();
    let missing = missing(&session.plan, &built);
    if keys.is_empty() {
        let message = format!("the cache has nothing of the plan `{}`", session.plan.name);
        return Err(Problem::new(Code::CallNotBuilt, message)
            .help(
                "build it first, with the same --set and --cache; `kiln plan` says what is missing",
            )
            .into());
    }
    session.places().take_file("the bundle", &args.file)?;
    check_replaceable(&args.file)
        .context(Code::BundleIo, || format!("write {}", args.file.display()))?;
    let exported = session.store.export(&keys, &args.file)?;
    common.print(&if common.json {
        let mut line = json!(exported);
        line["missing_stages"] = json!(missing);
        format!("{line}\n")
    } else {
        let Exported {
            results,
            blobs,
            blob_bytes,
        } = exported;
        let (results, blobs, size) = (
            count(results, "result"),
            count(blobs, "blob"),
            bytes(blob_bytes),
        );
        let file = args.file.display();
        let mut text = format!("{results} and {blobs}, {size}, written to {file}\n");
        if !missing.is_empty() {
            text += &format!(
                "not all there, so a build will run more: {}\n",
                missing.join(", ")
            );
        }
        text
    });
    Ok(Exit::Done)
}

/// The stages that the cache does not have all of.
fn missing<'a>(plan: &'a Plan, built: &Built) -> Vec<&'a str> {
    let missing = plan
        .stages
        .iter()
        .filter(|stage| !built.completed.contains_key(&stage.id));
    missing.map(|stage| stage.id.0.as_str()).collect()
}

/// Puts what is new into the cache, which is made if need be.
pub(super) fn import(args: &ImportArgs, common: &Common) -> Result<Exit> {
    let imported = Disk::open(&common.cache)?.import(&args.file)?;
    common.print(&if common.json {
        format!("{}\n", json!(imported))
    } else {
        imported_text(&imported)
    });
    Ok(Exit::Done)
}

fn imported_text(imported: &Imported) -> String {
    let Imported {
        results,
        blobs,
        blob_bytes,
        known_results,
        known_blobs,
        incomplete_results,
    } = *imported;
    let mut text = format!(
        "{} and {}, {}, put into the cache\n",
        count(results, "result"),
        count(blobs, "blob"),
        bytes(blob_bytes)
    );
    if known_results + known_blobs > 0 {
        let (results, blobs) = (count(known_results, "result"), count(known_blobs, "blob"));
        text += &format!("{results} and {blobs} were there already\n");
    }
    if incomplete_results > 0 {
        text += &format!(
            "{} left out: not all of their blobs came with them\n",
            count(incomplete_results, "result")
        );
    }
    text
}
