//! `kiln cache`: shows, checks and cleans up the local cache, and copies results between caches.

mod bundle;
mod gc;

use serde_json::json;

use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::base::{Code, Problem, Result, bytes, count};
use crate::store::{Disk, Garbage, StageStats, Stats, Verified};

/// What to do with the cache.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Show the number and size of results and blobs
    Stats,
    /// Hash every blob and check every result; exit code 3 if any is damaged
    Verify {
        /// Remove damaged blobs and results; the next build makes them again
        #[arg(long)]
        repair: bool,
    },
    /// Remove results that neither the last build of a plan nor a lock file needs: all of them, or
    /// as many as the limits require
    Gc(gc::Args),
    /// Write all cached results of a plan to one file
    Export(bundle::ExportArgs),
    /// Add the results in such a file to the cache
    Import(bundle::ImportArgs),
}

/// Runs the subcommand.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    if !common.cache.is_dir() && !matches!(args.action, Action::Import(_)) {
        let message = format!("there is no cache at {}", common.cache.display());
        return Err(Problem::new(Code::CallNoCache, message)
            .help("choose the folder with --cache or KILN_CACHE")
            .into());
    }
    match &args.action {
        Action::Stats => Ok(stats(common)?),
        Action::Verify { repair } => Ok(verify(*repair, common)?),
        Action::Gc(args) => Ok(gc::run(args, common)?),
        Action::Export(args) => bundle::export(args, common, stages),
        Action::Import(args) => Ok(bundle::import(args, common)?),
    }
}

fn stats(common: &Common) -> Result<Exit> {
    let store = Disk::open(&common.cache)?;
    let stats = store.stats()?;
    let garbage = store.garbage(&gc::without_limits(&store)?)?;
    common.print(&if common.json {
        let mut line = json!(stats);
        line["kept_bytes"] = json!(garbage.kept.bytes);
        line["garbage_bytes"] = json!(garbage.bytes());
        format!("{line}\n")
    } else {
        stats_text(&stats, &garbage)
    });
    Ok(Exit::Done)
}

fn verify(repair: bool, common: &Common) -> Result<Exit> {
    let store = Disk::open(&common.cache)?;
    let verified = store.verify()?;
    common.print(&if common.json {
        format!("{}\n", json!(verified))
    } else {
        verified_text(&verified, repair)
    });
    if repair {
        store.repair(&verified)?;
    }
    Ok(if verified.faults.is_empty() || repair {
        Exit::Done
    } else {
        Exit::DigestDiffers
    })
}

fn stats_text(stats: &Stats, garbage: &Garbage) -> String {
    let mut text = format!(
        "{:<14} {:>8} {:>10} {:>12}\n",
        "stage", "results", "output", "peak memory"
    );
    for (
        stage,
        StageStats {
            actions,
            output_bytes,
            peak_memory_bytes,
        },
    ) in &stats.stages
    {
        // The peak of actions that run inside of kiln is not known.
        let peak = match peak_memory_bytes {
            Some(peak) => bytes(*peak),
            None => "-".into(),
        };
        text += &format!(
            "{stage:<14} {actions:>8} {:>10} {peak:>12}\n",
            bytes(*output_bytes)
        );
    }
    text += &format!("\n{} blobs, {}", stats.blobs, bytes(stats.blob_bytes));
    if stats.partial_bytes > 0 {
        text += &format!("; {} of incomplete downloads", bytes(stats.partial_bytes));
    }
    let (kept, garbage) = (bytes(garbage.kept.bytes), bytes(garbage.bytes()));
    text + &format!("\nthe last builds need {kept}; `kiln cache gc` would free {garbage}\n")
}

fn verified_text(verified: &Verified, repair: bool) -> String {
    let mut text = String::new();
    for fault in &verified.faults {
        text += &format!("{}: {}\n", fault.path.display(), fault.what);
    }
    let outcome = match (verified.faults.len(), repair) {
        (0, _) => "none damaged".into(),
        (damaged, true) => format!("{damaged} damaged, removed"),
        (damaged, false) => format!("{damaged} damaged; `kiln cache verify --repair` removes them"),
    };
    let blobs = count(verified.blobs, "blob");
    let results = count(verified.actions, "result");
    text + &format!("{blobs} and {results}: {outcome}\n")
}
