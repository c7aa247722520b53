//! The views of a running build: progress on the screen, the event log, and reports.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, stderr, stdout};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_setfl};

use super::output_paths::OutputPaths;
use super::reports::{self, Reports};
use super::{Common, Failed};
use crate::base::atomic::folder_of;
use crate::base::{Code, Context, Problem};
use crate::events::{
    Bars, Event, Failure, Failures, JsonLines, Listener, Plain, Summary, TimedListener,
};

/// Which files to write besides the view on the screen.
#[derive(clap::Args, Default)]
pub(super) struct ViewArgs {
    /// Write all events to FILE as JSON lines while the build runs; `kiln replay` reads them
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(flatten)]
    reports: reports::Args,
}

/// Passes each event to all views, with the same time; also counts parts and collects failures.
pub(super) struct Screen {
    started: Option<Instant>,
    summary: Summary,
    failures: Failures,
    progress: Progress,
    log: Option<(PathBuf, JsonLines<File>)>,
    reports: Reports,
}

/// The view on the screen. A build that runs nothing shows no progress.
enum Progress {
    /// No part has started yet; these events are shown once one does.
    Deferred(Vec<(u64, Event)>),
    Live(Box<dyn TimedListener>),
}

impl Screen {
    /// Opens all files, so that a path that cannot be written fails before the build starts.
    pub(super) fn open(
        args: &ViewArgs,
        paths: &mut OutputPaths,
        common: &Common,
    ) -> Result<Self, Failed> {
        if let Some(path) = &args.log {
            paths.reserve_file("the log", path)?;
        }
        let reports = Reports::open(&args.reports, paths)?;
        let progress = if common.json {
            Progress::Live(Box::new(JsonLines::new(stdout())))
        } else {
            Progress::Deferred(vec![])
        };
        let mut log = None;
        if let Some(path) = &args.log {
            let file = create_log(path).context(Code::CallLog, || {
                format!("write the log {}", path.display())
            })?;
            log = Some((path.clone(), JsonLines::new(file)));
        }
        Ok(Screen {
            started: None,
            summary: Summary::default(),
            failures: Failures::default(),
            progress,
            log,
            reports,
        })
    }

    /// Writes the reports. Returns the counts, the failures of parts, and the problems of the log
    /// and the reports.
    pub(super) fn close(self) -> (Summary, Vec<Failure>, Vec<Problem>) {
        let mut problems = vec![];
        if let Some((path, lines)) = self.log
            && let Some(error) = lines.failed()
        {
            let message = format!("failed to write the log {}; it is cut", path.display());
            let help = "finished parts are in the cache: build again to write the remaining \
                        artifacts";
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
        let started = *self.started.get_or_insert_with(Instant::now);
        let at_ms = started.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        self.summary.on_event(event);
        self.failures.on_event(event);
        if let Some((_, log)) = &mut self.log {
            log.on_event_at(at_ms, event);
        }
        self.reports.on_event_at(at_ms, event);
        match &mut self.progress {
            Progress::Live(view) => view.on_event_at(at_ms, event),
            Progress::Deferred(events) => {
                events.push((at_ms, event.clone()));
                if matches!(event, Event::Started { .. } | Event::Failed { .. }) {
                    let mut view = live_view(started);
                    for (at_ms, event) in events {
                        view.on_event_at(*at_ms, event);
                    }
                    self.progress = Progress::Live(view);
                }
            }
        }
    }
}

/// Opens a file, a device or a pipe for writing. A pipe without a reader is an error.
fn create_log(path: &Path) -> io::Result<File> {
    std::fs::create_dir_all(folder_of(path))?;
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

/// Progress bars on a terminal, lines of text elsewhere.
fn live_view(started: Instant) -> Box<dyn TimedListener> {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    if stderr().is_terminal() && !is_dumb {
        Box::new(Bars::new(started))
    } else {
        Box::new(Plain::new(stderr()))
    }
}
