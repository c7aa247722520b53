//! The child's side: one action, run by the command `kiln work`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::Watch;
use super::local::run_here;
use crate::action::{Action, Outputs, Registry};
use crate::base::{Code, Context, Problem, Result, adopt_orphans, end_descendants};
use crate::store::LocalStore;

/// What a child leaves in its result file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Reply {
    Done {
        outputs: Outputs,
        peak_memory_bytes: Option<u64>,
    },
    Failed(Problem),
}

/// A line of a child's standard output.
#[derive(Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) unit: String,
}

/// Makes this process die when `parent` does. Must be its first act.
pub fn die_with_parent(parent: u32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context(Code::ExecuteLeash, || {
        "tie this process to its parent".into()
    })?;
    // The parent may have died before the line above; then no signal will come any more.
    let found = getppid().map(|pid| pid.as_raw_nonzero().get());
    if found != i32::try_from(parent).ok() {
        return Err(Problem::new(
            Code::ExecuteLeash,
            format!("the parent process {parent} is gone"),
        ));
    }
    Ok(())
}

/// Runs the action in the file `order` over `store` and writes its outputs or its problem to the
/// file `result`. An `Err` is a failure to do that. Progress goes to standard output, as JSON lines.
pub fn work(
    store: Result<impl LocalStore>,
    stages: &Registry,
    order: &Path,
    result: &Path,
) -> Result<()> {
    let text = fs::read(order).context(Code::ExecuteIo, || format!("read {}", order.display()))?;
    let action: Action = serde_json::from_slice(&text).context(Code::ExecuteIo, || {
        format!("understand {}", order.display())
    })?;
    adopt_orphans()?;
    let outputs = Line::take_stdout().and_then(|line| run_here(&store?, stages, &action, &line));
    let reply = match outputs {
        Ok(outputs) => Reply::Done {
            outputs,
            peak_memory_bytes: peak_memory_bytes(),
        },
        Err(problem) => Reply::Failed(problem),
    };
    end_descendants();
    let text =
        serde_json::to_vec(&reply).context(Code::ExecuteIo, || "serialize a result".into())?;
    fs::write(result, text).context(Code::ExecuteIo, || format!("write {}", result.display()))
}

/// The line to the parent.
struct Line {
    out: fs::File,
    last: Mutex<Option<Instant>>,
}

impl Line {
    /// Takes standard output for itself: libraries that print to it reach standard error instead.
    fn take_stdout() -> Result<Line> {
        let take = || -> io::Result<fs::File> {
            // No program that is started from here has it: the parent would wait for its end.
            let out = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
            rustix::stdio::dup2_stdout(io::stderr())?;
            Ok(out.into())
        };
        let out = take().context(Code::ExecuteIo, || "take standard output".into())?;
        Ok(Line {
            out,
            last: Mutex::new(None),
        })
    }
}

impl Watch for Line {
    fn progress(&self, done: u64, total: u64, unit: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_soon = last.is_some_and(|last| last.elapsed() < Duration::from_millis(50));
        if is_soon && done != total {
            return;
        }
        *last = Some(Instant::now());
        if let Ok(mut line) = serde_json::to_vec(&Said {
            done,
            total,
            unit: unit.into(),
        }) {
            line.push(b'\n');
            // A parent that does not listen is about to end us.
            let _ = (&self.out).write_all(&line);
        }
    }

    /// Never: the parent ends this process instead.
    fn cancelled(&self) -> bool {
        false
    }
}

/// The largest resident memory so far, mapped files included: of this process, or of a program that
/// it ran.
fn peak_memory_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let own = line
        .trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<u64>()
        .ok()?;
    let programs = getrusage(UsageWho::RUSAGE_CHILDREN)
        .ok()?
        .max_rss()
        .try_into()
        .ok()?;
    own.max(programs).checked_mul(1024)
}
