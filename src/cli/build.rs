//! `kiln build`: builds what a plan asks for, and writes it out.

use std::io::{Write, stderr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::artifacts::{Artifact, artifacts};
use super::machine::{budget_bytes, memory_bytes, parse_bytes};
use super::output::{add, kept, kept_of, write_out, write_remaining, write_stage};
use super::records::{self, Records};
use super::screen::{Screen, Views};
use super::session::Session;
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::{Code, Context, Result, bytes, count, duration};
use crate::engine::{CompletedStage, Limits};
use crate::events::Summary;
use crate::plan::PlannedStage;
use crate::store::{Links, Space};

/// What to build.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Only these stages and what they need [default: all]
    #[arg(value_name = "STAGE")]
    stages: Vec<String>,
    /// Write artifacts to DIR/STAGE/ instead of out/PLAN/STAGE/
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How many threads may be busy [default: all]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroU32>,
    /// How much memory may be in use: 6GB [default: 80 % of what this machine has]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Hard links instead of copies, where the file system knows no reflinks: no space, but do not
    /// edit them
    #[arg(long)]
    hard_links: bool,
    /// After a failure, go on with all that does not need what failed
    #[arg(long)]
    keep_going: bool,
    #[command(flatten)]
    records: records::Args,
    #[command(flatten)]
    views: Views,
}

/// Builds, writes out what is kept, and says so in a table.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let begun = Instant::now();
    let mut session = Session::open(&args.plan, &args.stages, common, stages)?;
    // Where nothing is known, nothing is limited.
    let memory_bytes = args
        .memory
        .unwrap_or_else(|| memory_bytes().map_or(u64::MAX, budget_bytes));
    let limits = Limits {
        jobs: jobs(args.jobs),
        memory_bytes,
        keep_going: args.keep_going,
    };
    if args.jobs.is_some() {
        // Fails only where a pool exists already; then that one serves.
        let _ = rayon::ThreadPoolBuilder::new()
            .num_threads(limits.jobs as usize)
            .build_global();
    }
    let cancel = interruption()?;

    let out = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from("out").join(&session.plan.name));
    let links = if args.hard_links {
        Links::Hard
    } else {
        Links::Reflink
    };
    let locked = args
        .records
        .locked(&args.plan, &args.stages, &session, common)?;
    let mut places = session.places();
    places.refuse_in_cache("what is built", &out)?;
    places.keep(
        session
            .plan
            .stages
            .iter()
            .map(|stage| out.join(&stage.id.0)),
        records::NAMES.iter().map(|name| out.join(name)),
    );
    let mut screen = Screen::open(&args.views, &mut places, common)?;
    let early = Mutex::new(None);
    let completed = |stage: &PlannedStage, completed: &CompletedStage| {
        // What is held to a lock is not written before all of it is known. What fails here fails
        // again at the end, where it is said.
        if locked.is_none()
            && let Ok(Some(kept)) = kept_of(stage, completed)
            && let Ok(wrote) = write_stage(&session.store, &stage.id.0, &kept, &out, links)
        {
            add(
                &mut early.lock().unwrap_or_else(PoisonError::into_inner),
                wrote,
            );
        }
    };
    let built = session.build(limits, &cancel, &completed, &mut screen);
    let mut wrote = early.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (summary, mut failures, unwritten) = screen.close();
    let remembered = session.remember(&built);
    let is_cancelled = cancel.load(Ordering::Relaxed);
    let kept = kept(&session.plan, &built);
    let has_failed = !failures.is_empty() || !unwritten.is_empty();
    if is_cancelled || remembered.is_err() || has_failed {
        let written = match locked {
            Some(_) => Ok(()),
            None => kept
                .and_then(|kept| write_out(&session.store, &kept, &out, links))
                .map(drop),
        };
        let left = write_remaining(&session, &mut failures, &out, links);
        let others = [remembered, written, left]
            .into_iter()
            .filter_map(Result::err);
        let failed = session.failed(&failures, unwritten.into_iter().chain(others));
        if !failed.problems.is_empty() {
            return Err(failed);
        }
        // With --json, the last event has said so.
        if !common.json {
            let _ = writeln!(stderr(), "interrupted; what is done stays in the cache");
        }
        return Ok(Exit::Interrupted);
    }

    let kept = kept?;
    let records = Records::of(&args.records, &args.plan, &session, &built, &kept);
    if let Some(locked) = &locked {
        records.hold(locked)?;
    }
    add(&mut wrote, write_out(&session.store, &kept, &out, links)?);
    if let Some(locked) = &locked {
        records.hold_written(locked, &out)?;
    }
    if records.write(&out)? {
        add(&mut wrote, Some(Space::default()));
    }
    let ran = summary.total(|stage| stage.ran);
    common.print(&if common.json {
        format!("{}\n", json!({"out": out, "artifacts": artifacts(&kept)}))
    } else if ran == 0 && wrote.is_none() {
        format!(
            "nothing to do: {}, {}\n",
            count(summary.total(|stage| stage.parts), "part"),
            duration(begun.elapsed())
        )
    } else {
        let total = summary.total(|stage| stage.hits);
        let end = format!(
            "{} ran, {total} from the cache, in {}",
            count(ran, "part"),
            duration(begun.elapsed())
        );
        let space = in_words(wrote.unwrap_or_default());
        format!(
            "{}{end}; written to {}{space}\n",
            table(&artifacts(&kept), &summary),
            out.display()
        )
    });
    records.check(&args.stages, limits, &cancel, &out, common)?;
    records.lock(common)?;
    Ok(Exit::Done)
}

fn jobs(asked: Option<NonZeroU32>) -> u32 {
    let cores =
        || available_parallelism().map_or(1, |cores| cores.get().try_into().unwrap_or(u32::MAX));
    asked.map_or_else(cores, NonZeroU32::get)
}

/// Set by the first Ctrl-C, SIGTERM or SIGHUP; a second ends this process at once, and its children
/// with it.
fn interruption() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let code = Exit::Interrupted as i32;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .context(Code::CallSignal, || format!("listen for signal {signal}"))?;
    }
    Ok(flag)
}

/// What written files cost: ` (133 MB copied)`.
fn in_words(space: Space) -> String {
    let Space {
        shared_bytes,
        copied_bytes,
    } = space;
    match (shared_bytes, copied_bytes) {
        (0, 0) => String::new(),
        (shared, 0) => format!(" ({} shared with the cache)", bytes(shared)),
        (0, copied) => format!(" ({} copied)", bytes(copied)),
        (shared, copied) => format!(
            " ({} copied, {} shared with the cache)",
            bytes(copied),
            bytes(shared)
        ),
    }
}

/// Stage, artifact, size, digest and time; a folder of an artifact is one row.
fn table(artifacts: &[Artifact], summary: &Summary) -> String {
    let mut rows: Vec<[String; 5]> =
        vec![["stage", "artifact", "size", "digest", "time"].map(|title| title.to_string())];
    let mut last = "";
    for artifact in artifacts {
        let tally = summary.stage(&artifact.stage).filter(|tally| tally.ran > 0);
        let time = tally.map_or("cached".into(), |tally| {
            duration(Duration::from_millis(tally.took_ms))
        });
        let is_new = artifact.stage != last;
        let digest = artifact
            .digest
            .map_or(format!("{} files", artifact.files), |digest| digest.short());
        rows.push([
            if is_new {
                artifact.stage.clone()
            } else {
                String::new()
            },
            artifact.name.clone(),
            bytes(artifact.size_bytes),
            digest,
            if is_new { time } else { String::new() },
        ]);
        last = &artifact.stage;
    }
    aligned(&rows)
}

/// Columns as wide as their widest cell; sizes to the right.
fn aligned(rows: &[[String; 5]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let (a, b, c, d) = (width(0), width(1), width(2), width(3));
    let line = |[stage, name, size, digest, time]: &[String; 5]| {
        let line = format!("{stage:a$}  {name:b$}  {size:>c$}  {digest:d$}  {time}");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}
