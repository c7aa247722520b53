//! What is seen of a build while it runs, and what is kept of it.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, stderr, stdout};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_setfl};

use super::places::Places;
use super::reports::{self, Reports};
use super::{Common, Failed};
use crate::base::atomic::folder_of;
use crate::base::{Code, Context, Problem};
use crate::events::{
    Bars, Event, Failure, Failures, JsonLines, Listener, Plain, Summary, TimedListener,
};

/// The views besides the one on screen.
#[derive(clap::Args, Default)]
pub struct Views {
    /// Write every event to FILE as it happens, a line of JSON each; `kiln replay` reads it
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(flatten)]
    reports: reports::Args,
}

/// Counts, collects problems, and shows what happens in the way the call asks for. Every view is
/// told the same time.
pub(super) struct Screen {
    begun: Option<Instant>,
    summary: Summary,
    failures: Failures,
    shown: Shown,
    log: Option<(PathBuf, JsonLines<File>)>,
    reports: Reports,
}

/// A build in which nothing happens shows nothing.
enum Shown {
    /// Nothing has begun yet; these events wait.
    Later(Vec<(u64, Event)>),
    Now(Box<dyn TimedListener>),
}

impl Screen {
    /// Opens what is to be written at `places` of its own, so that what cannot be is known before
    /// the build.
    pub(super) fn open(
        views: &Views,
        places: &mut Places,
        common: &Common,
    ) -> Result<Self, Failed> {
        if let Some(path) = &views.log {
            places.take_file("the log", path)?;
        }
        let reports = Reports::open(&views.reports, places)?;
        let shown = match common.json {
            true => Shown::Now(Box::new(JsonLines::new(stdout()))),
            false => Shown::Later(vec![]),
        };
        let open = |path: &PathBuf| {
            let create = std::fs::create_dir_all(folder_of(path)).and_then(|()| create(path));
            let file = create.context(Code::CallLog, || {
                format!("write the log {}", path.display())
            })?;
            Ok::<_, Problem>((path.clone(), JsonLines::new(file)))
        };
        let log = views.log.as_ref().map(open).transpose()?;
        Ok(Screen {
            begun: None,
            summary: Summary::default(),
            failures: Failures::default(),
            shown,
            log,
            reports,
        })
    }

    /// Writes the reports. Yields what happened, what failed, and what else went wrong.
    pub(super) fn close(self) -> (Summary, Vec<Failure>, Vec<Problem>) {
        let mut problems = vec![];
        if let Some((path, Some(error))) = self.log.map(|(path, lines)| (path, lines.failed())) {
            let message = format!("failed to write the log {}; it is cut", path.display());
            let help = "what was built is in the cache all the same: a second build writes the \
                        rest of it out";
            problems.push(
                Problem::new(Code::ReportWrite, message)
                    .because(&error)
                    .help(help),
            );
        }
        problems.extend(self.reports.write());
        (self.summary, self.failures.into_vec(), problems)
    }
}

impl Listener for Screen {
    fn on_event(&mut self, event: &Event) {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let at_ms = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        self.summary.on_event(event);
        self.failures.on_event(event);
        if let Some((_, log)) = &mut self.log {
            log.on_event_at(at_ms, event);
        }
        self.reports.on_event_at(at_ms, event);
        match &mut self.shown {
            Shown::Now(view) => view.on_event_at(at_ms, event),
            Shown::Later(logged) => {
                logged.push((at_ms, event.clone()));
                if matches!(event, Event::Started { .. } | Event::Failed { .. }) {
                    let mut view = live(begun);
                    logged
                        .iter()
                        .for_each(|(at_ms, event)| view.on_event_at(*at_ms, event));
                    self.shown = Shown::Now(view);
                }
            }
        }
    }
}

/// Opens a file, a device or a pipe to write to. A pipe that nobody reads is refused at once.
fn create(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(flags)
        .open(path)?;
    fcntl_setfl(&file, OFlags::empty())?;
    Ok(file)
}

/// Bars where they can be drawn, lines elsewhere.
fn live(begun: Instant) -> Box<dyn TimedListener> {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    match stderr().is_terminal() && !is_dumb {
        true => Box::new(Bars::new(begun)),
        false => Box::new(Plain::new(stderr())),
    }
}
