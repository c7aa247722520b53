//! `kiln build`: builds a plan and writes its artifacts.

use std::io::{Write, stderr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::artifacts::{Artifact, artifacts};
use super::columns::column_width;
use super::machine::{budget_bytes, memory_bytes, parse_bytes};
use super::output::{
    add_space, kept_manifest, kept_manifests, write_artifacts, write_partial_outputs, write_stage,
};
use super::records::{self, Records};
use super::screen::{Screen, ViewArgs};
use super::session::Session;
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::{Code, Context, Result, bytes, count, duration};
use crate::engine::{CompletedStage, Limits};
use crate::events::Summary;
use crate::plan::PlannedStage;
use crate::store::{Links, Space};

/// What to build, and how.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Build only these stages and their dependencies [default: all that are not optional]
    #[arg(value_name = "STAGE")]
    stages: Vec<String>,
    /// Write artifacts to DIR/STAGE/ instead of out/PLAN/STAGE/
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Maximum number of threads [default: number of CPU cores]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroU32>,
    /// Memory limit of the build, for example 6GB [default: 80 % of the machine's memory]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// If the file system has no reflinks, write artifacts as hard links into the cache instead of
    /// copies: uses no space, but the files must not be edited
    #[arg(long)]
    hard_links: bool,
    /// After a failure, continue with all parts that do not depend on the failed one
    #[arg(long)]
    keep_going: bool,
    #[command(flatten)]
    records: records::Args,
    #[command(flatten)]
    views: ViewArgs,
}

impl Args {
    fn limits(&self) -> Limits {
        // If the memory of the machine is unknown, there is no limit.
        let default_bytes = match memory_bytes() {
            Some(bytes) => budget_bytes(bytes),
            None => u64::MAX,
        };
        Limits {
            jobs: match self.jobs {
                Some(jobs) => jobs.get(),
                None => core_count(),
            },
            memory_bytes: self.memory.unwrap_or(default_bytes),
            keep_going: self.keep_going,
        }
    }

    fn links(&self) -> Links {
        if self.hard_links {
            Links::Hard
        } else {
            Links::Reflink
        }
    }
}

/// Builds the plan, writes the artifacts and prints a table of them.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let started = Instant::now();
    let mut session = Session::open(&args.plan, &args.stages, common, stages)?;
    let limits = args.limits();
    if args.jobs.is_some() {
        // Fails only if the pool of this process exists already; then that one is used.
        let _ = rayon::ThreadPoolBuilder::new()
            .num_threads(limits.jobs as usize)
            .build_global();
    }
    let cancel = cancel_on_signals()?;

    let out = match &args.out {
        Some(out) => out.clone(),
        None => PathBuf::from("out").join(&session.plan.name),
    };
    let links = args.links();
    let locked = args
        .records
        .read_lock(&args.plan, &args.stages, &session, common)?;
    let mut paths = session.output_paths();
    paths.check_outside_cache("the artifacts", &out)?;
    paths.reserve_artifacts(
        session
            .plan
            .stages
            .iter()
            .map(|stage| out.join(&stage.id.0)),
        records::NAMES.iter().map(|name| out.join(name)),
    );
    let mut screen = Screen::open(&args.views, &mut paths, common)?;
    let written_early = Mutex::new(None);
    let on_completed = |stage: &PlannedStage, completed: &CompletedStage| {
        // With --locked, nothing is written before the whole build is compared with the lock.
        // Errors are ignored here: the same write is repeated at the end and reported there.
        if locked.is_none()
            && let Ok(Some(kept)) = kept_manifest(stage, completed)
            && let Ok(space) = write_stage(&session.store, &stage.id.0, &kept, &out, links)
        {
            let mut sum = written_early.lock().unwrap_or_else(PoisonError::into_inner);
            add_space(&mut sum, space);
        }
    };
    let built = session.build(limits, &cancel, &on_completed, &mut screen);
    let mut written = written_early
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let (summary, mut failures, report_problems) = screen.close();
    let recorded = session.write_record(&built);
    let is_cancelled = cancel.load(Ordering::Relaxed);
    let kept = kept_manifests(&session.plan, &built);
    if is_cancelled || recorded.is_err() || !failures.is_empty() || !report_problems.is_empty() {
        let mut problems = report_problems;
        problems.extend(recorded.err());
        if locked.is_none() {
            let artifacts =
                kept.and_then(|kept| write_artifacts(&session.store, &kept, &out, links));
            problems.extend(artifacts.err());
        }
        problems.extend(write_partial_outputs(&session, &mut failures, &out, links).err());
        let failed = session.failed(&failures, problems);
        if !failed.problems.is_empty() {
            return Err(failed);
        }
        // With --json, the last event says this.
        if !common.json {
            let _ = writeln!(stderr(), "interrupted; finished parts are in the cache");
        }
        return Ok(Exit::Interrupted);
    }

    let kept = kept?;
    let records = Records::new(&args.records, &args.plan, &session, &built, &kept);
    if let Some(locked) = &locked {
        records.compare_build(locked)?;
    }
    add_space(
        &mut written,
        write_artifacts(&session.store, &kept, &out, links)?,
    );
    if let Some(locked) = &locked {
        records.compare_files(locked, &out)?;
    }
    if records.write(&out)? {
        add_space(&mut written, Some(Space::default()));
    }
    common.print(&if common.json {
        let line = json!({"out": out, "artifacts": artifacts(&kept)});
        format!("{line}\n")
    } else {
        let table = artifact_table(&artifacts(&kept), &summary);
        result_text(&table, &summary, written, &out, started.elapsed())
    });
    records.check(&args.stages, limits, &cancel, &out, common)?;
    records.write_lock(common)?;
    Ok(Exit::Done)
}

fn core_count() -> u32 {
    match available_parallelism() {
        Ok(cores) => cores.get().try_into().unwrap_or(u32::MAX),
        Err(_) => 1,
    }
}

/// A flag that the first Ctrl-C, SIGTERM or SIGHUP sets. A second signal ends this process and its
/// children at once.
fn cancel_on_signals() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let code = Exit::Interrupted as i32;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .context(Code::CallSignal, || format!("listen for signal {signal}"))?;
    }
    Ok(flag)
}

/// The last lines of a successful build. `written` is `None` if all artifacts were up to date.
fn result_text(
    table: &str,
    summary: &Summary,
    written: Option<Space>,
    out: &Path,
    elapsed: Duration,
) -> String {
    let ran = summary.total(|stage| stage.ran);
    let elapsed = duration(elapsed);
    if ran == 0 && written.is_none() {
        let parts = summary.total(|stage| stage.parts);
        return format!("nothing to do: {}, {elapsed}\n", count(parts, "part"));
    }
    let hits = summary.total(|stage| stage.hits);
    let space = space_text(written.unwrap_or_default());
    let ran = count(ran, "part");
    format!(
        "{table}{ran} ran, {hits} from the cache, in {elapsed}; written to {}{space}\n",
        out.display()
    )
}

/// The space of written files: ` (133 MB copied)`.
fn space_text(space: Space) -> String {
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

/// Stage, artifact, size, digest and time. A folder of an artifact is one row.
fn artifact_table(artifacts: &[Artifact], summary: &Summary) -> String {
    let mut rows = vec![["stage", "artifact", "size", "digest", "time"].map(String::from)];
    let mut last_stage = "";
    for artifact in artifacts {
        let (mut stage, mut time) = (String::new(), String::new());
        if artifact.stage != last_stage {
            stage.clone_from(&artifact.stage);
            time = match summary.stage(&artifact.stage) {
                Some(tally) if tally.ran > 0 => duration(Duration::from_millis(tally.took_ms)),
                _ => "cached".into(),
            };
        }
        let digest = match artifact.digest {
            Some(digest) => digest.short(),
            None => format!("{} files", artifact.files),
        };
        rows.push([
            stage,
            artifact.name.clone(),
            bytes(artifact.size_bytes),
            digest,
            time,
        ]);
        last_stage = &artifact.stage;
    }
    let (a, b, c, d) = (
        column_width(&rows, 0),
        column_width(&rows, 1),
        column_width(&rows, 2),
        column_width(&rows, 3),
    );
    let mut table = String::new();
    for [stage, name, size, digest, time] in &rows {
        // Sizes are aligned to the right.
        let line = format!("{stage:a$}  {name:b$}  {size:>c$}  {digest:d$}  {time}");
        table += line.trim_end();
        table += "\n";
    }
    table
}
