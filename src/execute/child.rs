//! The parent of a child process: starts `kiln work`, reads its output and waits for its end.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

use super::protocol::{ProgressLine, Reply};
use super::{RunOutput, Watch};
use crate::action::{Action, Demand};
use crate::base::{Code, Context, Problem, Result, kill_descendants_of};
use crate::store::LocalStore;

/// How much of the standard error of a crashed child is shown.
const STDERR_TAIL_BYTES: usize = 4096;

/// The default capacity of a pipe.
const PIPE_BYTES: usize = 1 << 16;

/// Time between two checks whether the child has ended.
const EXIT_POLL: Duration = Duration::from_millis(5);

/// The longest wait for output before checking whether the child has ended.
const OUTPUT_POLL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

/// The environment variables that the child inherits. Others could change what a library does
/// without being in the key.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LD_LIBRARY_PATH"];

/// Runs `action` in a child process. The child ends with this thread; a crash of the child does not
/// affect this process.
pub(super) fn run(
    program: &Path,
    store: &dyn LocalStore,
    action: &Action,
    demand: &Demand,
    watch: &dyn Watch,
) -> Result<RunOutput> {
    let scratch = store.scratch()?;
    let order = scratch.path().join("action.json");
    let result = scratch.path().join("result.json");
    let text =
        serde_json::to_vec(action).context(Code::ExecuteIo, || "serialize an action".into())?;
    fs::write(&order, text).context(Code::ExecuteIo, || format!("write {}", order.display()))?;

    let mut command = Command::new(program);
    command
        .arg0("kiln")
        .arg("work")
        .arg(&order)
        .arg("--cache")
        .arg(store.root())
        .arg("--result")
        .arg(&result)
        .args(["--parent", &std::process::id().to_string()])
        .env_clear()
        .env("TMPDIR", scratch.path())
        .env("RAYON_NUM_THREADS", demand.threads.to_string())
        // kiln's allocator returns memory at once: the bounds of stages count on it.
        .env("MIMALLOC_PURGE_DELAY", "0")
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let mut child = command.spawn().context(Code::ExecuteSpawn, || {
        format!("start {}", program.display())
    })?;

    let (status, stderr_tail) = supervise(&mut child, watch)?;
    if status.success() {
        return read_reply(&result);
    }
    if watch.cancelled() {
        return Err(Problem::cancelled());
    }
    Err(crashed(&action.stage, status, &stderr_tail))
}

fn read_reply(path: &Path) -> Result<RunOutput> {
    let text = fs::read(path).context(Code::ExecuteIo, || format!("read {}", path.display()))?;
    let reply = serde_json::from_slice(&text)
        .context(Code::ExecuteIo, || format!("understand {}", path.display()))?;
    match reply {
        Reply::Done {
            outputs,
            peak_memory_bytes,
        } => Ok(RunOutput {
            outputs,
            peak_memory_bytes,
        }),
        Reply::Failed(problem) => Err(problem),
    }
}

/// Waits until the child ends, or kills it when the build is being stopped. Forwards its progress,
/// and returns its exit status and the tail of its standard error.
fn supervise(child: &mut Child, watch: &dyn Watch) -> Result<(ExitStatus, String)> {
    let has_ended = &AtomicBool::new(false);
    let stdout = child
        .stdout
        .take()
        .map(|pipe| ChildPipe::new(pipe, has_ended));
    let stderr = child
        .stderr
        .take()
        .map(|pipe| ChildPipe::new(pipe, has_ended));
    thread::scope(|scope| {
        if let Some(stdout) = stdout {
            scope.spawn(move || forward_progress(BufReader::new(stdout), watch));
        }
        let stderr_tail = stderr.map(|stderr| scope.spawn(move || read_tail(stderr)));
        let status =
            reap(child, watch).context(Code::ExecuteIo, || "wait for a child process".into());
        has_ended.store(true, Ordering::Release);
        let stderr_tail = match stderr_tail {
            Some(thread) => thread.join().unwrap_or_default(),
            None => String::new(),
        };
        Ok((status?, stderr_tail))
    })
}

/// A pipe from a child. Reading it ends with the child, even if another process has the other end
/// open.
struct ChildPipe<'a, P> {
    pipe: P,
    has_ended: &'a AtomicBool,
    /// How many bytes may still be read after the child's end.
    remaining: usize,
}

impl<'a, P> ChildPipe<'a, P> {
    fn new(pipe: P, has_ended: &'a AtomicBool) -> Self {
        ChildPipe {
            pipe,
            has_ended,
            remaining: PIPE_BYTES,
        }
    }
}

impl<P: Read + AsFd> Read for ChildPipe<'_, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Checked before polling: if the child has ended, all of its output is in the pipe.
            let has_ended = self.has_ended.load(Ordering::Acquire);
            let timeout = if has_ended {
                Timespec::default()
            } else {
                OUTPUT_POLL
            };
            match poll(
                &mut [PollFd::new(&self.pipe, PollFlags::IN)],
                Some(&timeout),
            ) {
                Ok(ready) if has_ended && (ready == 0 || self.remaining == 0) => return Ok(0),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => {
                    let count = self.pipe.read(buffer)?;
                    if has_ended {
                        self.remaining = self.remaining.saturating_sub(count);
                    }
                    return Ok(count);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn forward_progress(stdout: impl BufRead, watch: &dyn Watch) {
    for line in stdout.lines() {
        let Ok(line) = line else {
            return;
        };
        if let Ok(ProgressLine { done, total, unit }) = serde_json::from_str(&line) {
            watch.progress(done, total, &unit);
        }
    }
}

fn read_tail(mut stderr: impl Read) -> String {
    let mut tail = VecDeque::new();
    let mut buffer = [0; STDERR_TAIL_BYTES];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        tail.extend(buffer.iter().take(count));
        tail.drain(..tail.len().saturating_sub(STDERR_TAIL_BYTES));
    }
    String::from_utf8_lossy(tail.make_contiguous()).into_owned()
}

/// Waits until the child ends, or kills it with all processes that it started.
fn reap(child: &mut Child, watch: &dyn Watch) -> std::io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while waitid(WaitId::Pid(pid), options)?.is_none() && !watch.cancelled() {
        sleep(EXIT_POLL);
    }
    if watch.cancelled() {
        // A stopped process starts no more processes, but still adopts the orphans below it.
        let _ = kill_process(pid, Signal::STOP);
        kill_descendants_of(pid);
    }
    // Kills the rest of its process group, which exists until the child is reaped. Fails if there
    // is none.
    let _ = kill_process_group(pid, Signal::KILL);
    child.wait()
}

fn crashed(stage: &str, status: ExitStatus, stderr_tail: &str) -> Problem {
    let help = if status.signal() == Some(Signal::KILL.as_raw()) {
        "the kernel kills a process when memory runs out: use fewer --jobs, or a machine with more \
         memory"
    } else {
        "nothing of this attempt was kept, and the other stages are not touched; what its process \
         said last is above. If it happens again, pin another version of the tool in [tools]"
    };
    let mut problem = Problem::new(
        Code::ExecuteCrashed,
        format!("the process of stage `{stage}` died: {status}"),
    )
    .help(help);
    if !stderr_tail.trim().is_empty() {
        let tail = stderr_tail.trim_end();
        problem.causes.push(format!("its last output:\n{tail}"));
    }
    problem
}
