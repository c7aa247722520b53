//! The files that a build, or a log of one, can be made into.

use std::path::{Path, PathBuf};

use super::places::Places;
use crate::base::atomic::{check_replaceable, folder_of, write_atomic};
use crate::base::{Code, Context, Problem, Result};
use crate::events::{Event, Junit, Report, TimedListener, Trace};

/// Which files.
#[derive(clap::Args, Default)]
#[group(skip)]
pub struct Args {
    /// Write a JUnit report to FILE, for CI systems: a suite a stage, a case a part
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write what ran when to FILE, for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// The reports asked for, and where they go.
pub(super) struct Reports(Vec<(PathBuf, Box<dyn Report>)>);

impl Reports {
    /// Reports that have heard nothing yet. Hours may pass before they are written, so that they
    /// can be is tried now.
    pub(super) fn open(args: &Args, places: &mut Places) -> Result<Reports> {
        let junit = args
            .junit
            .clone()
            .map(|path| (path, Box::new(Junit::default()) as Box<dyn Report>));
        let trace = args
            .trace
            .clone()
            .map(|path| (path, Box::new(Trace::default()) as Box<dyn Report>));
        let reports: Vec<_> = junit.into_iter().chain(trace).collect();
        for (path, _) in &reports {
            places.take_file("the report", path)?;
            try_to_write(path)?;
        }
        Ok(Reports(reports))
    }

    /// Writes each, whole or not at all; yields what could not be written.
    pub(super) fn write(&self) -> Vec<Problem> {
        let write = |(path, report): &(PathBuf, Box<dyn Report>)| -> Result<()> {
            write_atomic(path, &report.file()?).context(Code::ReportWrite, || {
                format!("write the report {}", path.display())
            })
        };
        self.0
            .iter()
            .filter_map(|report| write(report).err())
            .collect()
    }
}

impl TimedListener for Reports {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        self.0
            .iter_mut()
            .for_each(|(_, report)| report.on_event_at(at_ms, event));
    }
}

/// Writes beside `path`, and leaves nothing.
fn try_to_write(path: &Path) -> Result<()> {
    let refused = || format!("write the report {}", path.display());
    if path.is_dir() {
        let message = format!("failed to {}: it is a folder", refused());
        return Err(Problem::new(Code::CallReport, message).help("give the path of a file"));
    }
    check_replaceable(path)
        .and_then(|()| std::fs::create_dir_all(folder_of(path)))
        .and_then(|()| tempfile::tempfile_in(folder_of(path)))
        .map(drop)
        .context(Code::CallReport, refused)
        .map_err(|problem| problem.help("give a path in a folder that can be written to"))
}
