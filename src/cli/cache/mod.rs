//! `kiln cache`: looks into the local cache, makes room in it, and brings results from one to
//! another.

mod bundle;
mod gc;

use serde_json::json;

use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::base::{Code, Problem, Result, bytes};
use crate::store::{Disk, Garbage, StageStats, Stats, Verified};

/// What to do with it.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Count blobs, results and bytes
    Stats,
    /// Hash every blob and check every result again; exit code 3 if any is damaged
    Verify {
        /// Remove what is damaged: what made it runs again in the next build
        #[arg(long)]
        repair: bool,
    },
    /// Remove what neither a last build nor a lock keeps, as far as the limits ask for it; all of
    /// it without a limit
    Gc(gc::Args),
    /// Write what the cache has of a plan to one file
    Export(bundle::ExportArgs),
    /// Put what such a file holds into this cache
    Import(bundle::ImportArgs),
}

/// Runs the subcommand.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    if !common.cache.is_dir() && !matches!(args.action, Action::Import(_)) {
        let message = format!("there is no cache at {}", common.cache.display());
        return Err(Problem::new(Code::CallNoCache, message)
            .help("name it with --cache or KILN_CACHE")
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
        // Threads share kiln's own memory.
        let peak = peak_memory_bytes.map_or("-".into(), bytes);
        text += &format!(
            "{stage:<14} {actions:>8} {:>10} {peak:>12}\n",
            bytes(*output_bytes)
        );
    }
    text += &format!("\n{} blobs, {}", stats.blobs, bytes(stats.blob_bytes));
    if stats.partial_bytes > 0 {
        text += &format!(
            "; {} of half-finished downloads",
            bytes(stats.partial_bytes)
        );
    }
    let (kept, garbage) = (bytes(garbage.kept.bytes), bytes(garbage.bytes()));
    text + &format!("\nlast builds keep {kept}; `kiln cache gc` would free {garbage}\n")
}

fn verified_text(verified: &Verified, repair: bool) -> String {
    let mut text = String::new();
    for fault in &verified.faults {
        text += &format!("{}: {}\n", fault.path.display(), fault.what);
    }
    let outcome = match (verified.faults.len(), repair) {
        (0, _) => "all whole".into(),
        (damaged, true) => format!("{damaged} damaged, removed"),
        (damaged, false) => format!("{damaged} damaged; `kiln cache verify --repair` removes them"),
    };
    text + &format!(
        "{} blobs and {} results: {outcome}\n",
        verified.blobs, verified.actions
    )
}
