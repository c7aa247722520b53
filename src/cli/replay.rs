//! `kiln replay`: shows a logged build again, and writes reports of it.

use std::io::{BufReader, Write, stderr, stdout};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use super::output_paths::OutputPaths;
use super::reports::{self, Reports};
use super::{Common, Exit, Failed};
use crate::base::{Code, Context, count, duration, open_file};
use crate::events::{Event, Failures, JsonLines, LogReader, Plain, Summary, TimedListener};

/// What to show, and how.
#[derive(clap::Args)]
pub(super) struct Args {
    /// An event log: written by `kiln build --log FILE`, or printed by `kiln build --json`
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// Replay at X times the original speed [default: without waiting]
    #[arg(long, value_name = "X", value_parser = parse_speed)]
    speed: Option<f64>,
    #[command(flatten)]
    reports: reports::Args,
}

fn parse_speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed > 0.0 => Ok(speed),
        _ => Err("expected a number above 0".into()),
    }
}

/// Shows the events as lines, then the problems and a summary. The exit code says whether the log
/// was readable, not whether the build succeeded. If the log is damaged, the events before the
/// damage are shown.
pub(super) fn run(args: &Args, common: &Common) -> Result<Exit, Failed> {
    let name = args.log.display();
    let file = open_file(&args.log)
        .context(Code::LogUnreadable, || format!("read the log {name}"))
        .map_err(|problem| problem.help("`kiln build PLAN --log FILE` writes one"))?;
    let mut reports = Reports::open(
        &args.reports,
        &mut OutputPaths::new(&common.cache, [args.log.clone()]),
    )?;
    let mut view: Box<dyn TimedListener> = if common.json {
        Box::new(JsonLines::new(stdout()))
    } else {
        Box::new(Plain::new(stdout()))
    };
    let mut outcome = Outcome::default();
    let mut problems = vec![];
    for entry in LogReader::new(BufReader::new(file)) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        if let Some(speed) = args.speed {
            let seconds = (entry.at_ms - outcome.last_ms) as f64 / 1000.0 / speed;
            sleep(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        }
        outcome.on_event_at(entry.at_ms, &entry.event);
        view.on_event_at(entry.at_ms, &entry.event);
        reports.on_event_at(entry.at_ms, &entry.event);
    }
    problems.extend(reports.write());
    if !common.json {
        for failure in outcome.failures.all() {
            let _ = writeln!(stderr(), "{}", common.render(&failure.report(), None));
        }
        common.print(&outcome.text());
    }
    if !problems.is_empty() {
        return Err(Failed {
            problems,
            source: None,
        });
    }
    Ok(Exit::Done)
}

/// The outcome of the logged build.
#[derive(Default)]
struct Outcome {
    summary: Summary,
    failures: Failures,
    last_ms: u64,
    plan: String,
    cancelled: bool,
}

impl TimedListener for Outcome {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        self.summary.on_event_at(at_ms, event);
        self.failures.on_event_at(at_ms, event);
        self.last_ms = at_ms;
        match event {
            Event::Begun { plan, .. } => self.plan.clone_from(plan),
            Event::Finished { cancelled, .. } => self.cancelled = *cancelled,
            _ => {}
        }
    }
}

impl Outcome {
    /// The last line; empty if no build was started.
    fn text(&self) -> String {
        if self.summary.stages.is_empty() {
            return String::new();
        }
        let ran = count(self.summary.total(|stage| stage.ran), "part");
        let hits = self.summary.total(|stage| stage.hits);
        let failed = match self.summary.total(|stage| stage.failed) {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        let elapsed = duration(Duration::from_millis(self.last_ms));
        let end = if self.cancelled { "; interrupted" } else { "" };
        format!(
            "{}: {ran} ran, {hits} from the cache{failed}, in {elapsed}{end}\n",
            self.plan
        )
    }
}
