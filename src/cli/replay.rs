//! `kiln replay`: shows a recorded build again, and makes reports of it.

use std::io::{BufReader, Write, stderr, stdout};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use super::places::Places;
use super::reports::{self, Reports};
use super::{Common, Exit, Failed};
use crate::base::{Code, Context, count, duration, open_file};
use crate::events::{Event, Failures, JsonLines, LogReader, Plain, Summary, TimedListener};

/// What to show, and how.
#[derive(clap::Args)]
pub struct Args {
    /// What `kiln build --log FILE` wrote, or `--json`
    #[arg(value_name = "LOG")]
    log: PathBuf,
    /// So many times as fast as it was; without, all at once
    #[arg(long, value_name = "X", value_parser = speed)]
    speed: Option<f64>,
    #[command(flatten)]
    reports: reports::Args,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text
        .parse()
        .ok()
        .filter(|speed: &f64| speed.is_finite() && *speed > 0.0);
    speed.ok_or_else(|| "expected a number above 0".into())
}

/// Shows the build as plain lines, its problems and a summary. A build that failed is no failure
/// here; a log that cannot be trusted to its end is one, after what comes before it was shown.
pub fn run(args: &Args, common: &Common) -> Result<Exit, Failed> {
    let name = args.log.display();
    let opened =
        open_file(&args.log).context(Code::LogUnreadable, || format!("read the log {name}"));
    let file = opened.map_err(|problem| problem.help("`kiln build PLAN --log FILE` writes one"))?;
    let mut reports = Reports::open(
        &args.reports,
        &mut Places::new(&common.cache, [args.log.clone()]),
    )?;
    let mut view: Box<dyn TimedListener> = match common.json {
        true => Box::new(JsonLines::new(stdout())),
        false => Box::new(Plain::new(stdout())),
    };
    let mut told = Told::default();
    let mut problems = vec![];
    for logged in LogReader::new(BufReader::new(file)) {
        match logged {
            Ok(logged) => {
                let waited_ms = logged.at_ms - told.last_ms;
                if let Some(speed) = args.speed {
                    sleep(
                        Duration::try_from_secs_f64(waited_ms as f64 / 1000.0 / speed)
                            .unwrap_or(Duration::MAX),
                    );
                }
                told.on_event_at(logged.at_ms, &logged.event);
                view.on_event_at(logged.at_ms, &logged.event);
                reports.on_event_at(logged.at_ms, &logged.event);
            }
            Err(problem) => problems.push(problem),
        }
    }
    problems.extend(reports.write());
    if !common.json {
        for failure in told.failures.all() {
            let _ = writeln!(stderr(), "{}", common.render(&failure.report(), None));
        }
        common.print(&told.end());
    }
    if problems.is_empty() {
        Ok(Exit::Done)
    } else {
        Err(Failed {
            problems,
            source: None,
        })
    }
}

/// What is said at the end.
#[derive(Default)]
struct Told {
    summary: Summary,
    failures: Failures,
    last_ms: u64,
    plan: String,
    cancelled: bool,
}

impl TimedListener for Told {
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

impl Told {
    /// Nothing where nothing began.
    fn end(&self) -> String {
        if self.summary.stages.is_empty() {
            return String::new();
        }
        let (ran, hits) = (
            self.summary.total(|stage| stage.ran),
            self.summary.total(|stage| stage.hits),
        );
        let failed = match self.summary.total(|stage| stage.failed) {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        let end = if self.cancelled { "; interrupted" } else { "" };
        let took = duration(Duration::from_millis(self.last_ms));
        format!(
            "{}: {} ran, {hits} from the cache{failed}, in {took}{end}\n",
            self.plan,
            count(ran, "part")
        )
    }
}
