//! The child process: runs one action, as the command `kiln work`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::Watch;
use super::local::run_here;
use super::protocol::{ProgressLine, Reply};
use crate::action::{Action, Registry};
use crate::base::{Code, Context, Problem, Result, adopt_orphans, kill_descendants};
use crate::store::LocalStore;

/// The minimum time between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Makes the kernel kill this process when the process `parent` ends. Must be called first.
pub fn die_with_parent(parent: u32) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context(Code::ExecuteParent, || {
        "tie this process to its parent".into()
    })?;
    // If the parent ended before the call above, no signal will come.
    let found = getppid().map(|pid| pid.as_raw_nonzero().get());
    if found != i32::try_from(parent).ok() {
        return Err(Problem::new(
            Code::ExecuteParent,
            format!("the parent process {parent} is gone"),
        ));
    }
    Ok(())
}

/// Runs the action in the file `order` and writes its outputs or its problem to the file `result`.
/// An `Err` is a failure to do that. Progress is written to standard output as JSON lines.
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
    let reply = match run_action(store, stages, &action) {
        Ok(done) => done,
        Err(problem) => Reply::Failed(problem),
    };
    kill_descendants();
    let text =
        serde_json::to_vec(&reply).context(Code::ExecuteIo, || "serialize a result".into())?;
    fs::write(result, text).context(Code::ExecuteIo, || format!("write {}", result.display()))
}

fn run_action(store: Result<impl LocalStore>, stages: &Registry, action: &Action) -> Result<Reply> {
    let progress = ProgressPipe::take_stdout()?;
    Ok(Reply::Done {
        outputs: run_here(&store?, stages, action, &progress)?,
        peak_memory_bytes: peak_memory_bytes(),
    })
}

/// The pipe to the parent, for progress.
struct ProgressPipe {
    out: fs::File,
    last: Mutex<Option<Instant>>,
}

impl ProgressPipe {
    /// Takes over standard output. What libraries print to it goes to standard error instead.
    fn take_stdout() -> Result<ProgressPipe> {
        let failed = || "take standard output".into();
        // Not inherited by programs that are started from here: the parent would wait for their
        // end.
        let out =
            rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3).context(Code::ExecuteIo, failed)?;
        rustix::stdio::dup2_stdout(io::stderr()).context(Code::ExecuteIo, failed)?;
        Ok(ProgressPipe {
            out: out.into(),
            last: Mutex::new(None),
        })
    }
}

impl Watch for ProgressPipe {
    fn progress(&self, done: u64, total: u64, unit: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = *last
            && last.elapsed() < PROGRESS_INTERVAL
            && done != total
        {
            return;
        }
        *last = Some(Instant::now());
        let line = ProgressLine {
            done,
            total,
            unit: unit.into(),
        };
        if let Ok(mut line) = serde_json::to_vec(&line) {
            line.push(b'\n');
            // If it fails, the parent has ended, and this process is about to be killed.
            let _ = (&self.out).write_all(&line);
        }
    }

    /// Never: the parent kills this process instead.
    fn cancelled(&self) -> bool {
        false
    }
}

/// The peak of resident memory, mapped files included, in bytes: of this process, or of a program
/// that it ran.
fn peak_memory_bytes() -> Option<u64> {
    let children = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?;
    let programs_kib: u64 = children.max_rss().try_into().ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    for line in status.lines() {
        if let Some(value) = line.strip_prefix("VmHWM:") {
            let own_kib: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
            return own_kib.max(programs_kib).checked_mul(1024);
        }
    }
    None
}
