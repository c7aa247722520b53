//! The report files of a build: `--junit` and `--trace`.

use std::path::{Path, PathBuf};

use super::output_paths::OutputPaths;
use crate::base::atomic::{check_replaceable, folder_of, write_atomic};
use crate::base::{Code, Context, Problem, Result};
use crate::events::{Event, Junit, Report, TimedListener, Trace};

/// Which reports to write.
#[derive(clap::Args, Default)]
#[group(skip)]
pub(super) struct Args {
    /// Write a JUnit report to FILE, for CI systems: a suite per stage, a case per part
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write a timeline of all parts to FILE, for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// The reports to write, and their paths.
pub(super) struct Reports(Vec<(PathBuf, Box<dyn Report>)>);

impl Reports {
    /// Empty reports. Fails now if a report cannot be written later: a build may take hours.
    pub(super) fn open(args: &Args, paths: &mut OutputPaths) -> Result<Reports> {
        let mut reports: Vec<(PathBuf, Box<dyn Report>)> = vec![];
        if let Some(path) = &args.junit {
            reports.push((path.clone(), Box::new(Junit::default())));
        }
        if let Some(path) = &args.trace {
            reports.push((path.clone(), Box::new(Trace::default())));
        }
        for (path, _) in &reports {
            paths.reserve_file("the report", path)?;
            check_writable(path)?;
        }
        Ok(Reports(reports))
    }

    /// Writes each report atomically. Returns the problems of those that could not be written.
    pub(super) fn write(&self) -> Vec<Problem> {
        let mut problems = vec![];
        for (path, report) in &self.0 {
            if let Err(problem) = write_report(path, report.as_ref()) {
                problems.push(problem);
            }
        }
        problems
    }
}

impl TimedListener for Reports {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        for (_, report) in &mut self.0 {
            report.on_event_at(at_ms, event);
        }
    }
}

fn write_report(path: &Path, report: &dyn Report) -> Result<()> {
    write_atomic(path, &report.file()?).context(Code::ReportWrite, || {
        format!("write the report {}", path.display())
    })
}

/// Fails if no file can be written at `path`. Leaves no file behind.
fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        let message = format!(
            "failed to write the report {}: it is a folder",
            path.display()
        );
        return Err(Problem::new(Code::CallReport, message).help("give the path of a file"));
    }
    match try_to_write(path) {
        Ok(()) => Ok(()),
        Err(error) => {
            let message = format!("failed to write the report {}", path.display());
            let problem = Problem::new(Code::CallReport, message).because(&error);
            Err(problem.help("give a path in a folder that can be written to"))
        }
    }
}

fn try_to_write(path: &Path) -> std::io::Result<()> {
    check_replaceable(path)?;
    std::fs::create_dir_all(folder_of(path))?;
    tempfile::tempfile_in(folder_of(path))?;
    Ok(())
}
