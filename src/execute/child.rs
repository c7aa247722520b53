//! The parent's side of a child process: it starts `kiln work`, listens, and buries it.

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

use super::work::{Reply, Said};
use super::{Ran, Watch};
use crate::action::{Action, Demand};
use crate::base::{Code, Context, Problem, Result, end_below};
use crate::store::LocalStore;

/// How much of what a dead child wrote to standard error is shown.
const STDERR_TAIL_BYTES: usize = 4096;

/// What a pipe holds at most, unless it was enlarged.
const PIPE_BYTES: usize = 1 << 16;

/// How long one look for the child's words waits, in nanoseconds.
const GLANCE_NS: i64 = 20_000_000;

/// What the child inherits. Other variables could change what a library does without being in the
/// key.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LD_LIBRARY_PATH"];

/// Runs `action` in a child process. It dies with this thread, and alone.
pub(super) fn run(
    program: &Path,
    store: &dyn LocalStore,
    action: &Action,
    demand: &Demand,
    watch: &dyn Watch,
) -> Result<Ran> {
    let scratch = store.scratch()?;
    let (order, result) = (
        scratch.path().join("action.json"),
        scratch.path().join("result.json"),
    );
    let spelled =
        serde_json::to_vec(action).context(Code::ExecuteIo, || "serialize an action".into())?;
    fs::write(&order, spelled).context(Code::ExecuteIo, || format!("write {}", order.display()))?;

    let mut child = Command::new(program)
        .arg0("kiln")
        .arg("work")
        .arg(&order)
        .arg("--cache")
        .arg(store.root())
        .arg("--result")
        .arg(&result)
        .args(["--parent", &std::process::id().to_string()])
        .env_clear()
        .envs(
            INHERITED
                .iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        )
        .env("TMPDIR", scratch.path())
        .env("RAYON_NUM_THREADS", demand.threads.to_string())
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context(Code::ExecuteSpawn, || {
            format!("start {}", program.display())
        })?;

    let (status, stderr_tail) = attend(&mut child, watch)?;
    if status.success() {
        let reply =
            fs::read(&result).context(Code::ExecuteIo, || format!("read {}", result.display()))?;
        let reply = serde_json::from_slice(&reply).context(Code::ExecuteIo, || {
            format!("understand {}", result.display())
        })?;
        return match reply {
            Reply::Done {
                outputs,
                peak_memory_bytes,
            } => Ok(Ran {
                outputs,
                peak_memory_bytes,
            }),
            Reply::Failed(problem) => Err(problem),
        };
    }
    if watch.cancelled() {
        return Err(Problem::cancelled());
    }
    Err(crashed(&action.stage, status, &stderr_tail))
}

/// Listens until the child ends, or ends it when the build is being stopped.
fn attend(child: &mut Child, watch: &dyn Watch) -> Result<(ExitStatus, String)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let line = stdout.map(|pipe| Listening {
            pipe,
            is_over: &is_over,
            left: PIPE_BYTES,
        });
        let stderr = stderr.map(|pipe| Listening {
            pipe,
            is_over: &is_over,
            left: PIPE_BYTES,
        });
        scope.spawn(move || line.map(|line| pass_on_progress(BufReader::new(line), watch)));
        let stderr_tail = scope.spawn(move || stderr.map(stderr_tail).unwrap_or_default());
        let status =
            reap(child, watch).context(Code::ExecuteIo, || "wait for a child process".into());
        is_over.store(true, Ordering::Release);
        Ok((status?, stderr_tail.join().unwrap_or_default()))
    })
}

/// A pipe from a child. It ends with the child, whoever else may have the other end.
struct Listening<'a, P> {
    pipe: P,
    is_over: &'a AtomicBool,
    /// So much is heard of it after the child's end.
    left: usize,
}

impl<P: Read + AsFd> Read for Listening<'_, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Asked first: what the child said before its end is there by then.
            let is_over = self.is_over.load(Ordering::Acquire);
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: if is_over { 0 } else { GLANCE_NS },
            };
            match poll(&mut [PollFd::new(&self.pipe, PollFlags::IN)], Some(&wait)) {
                Ok(ready) if is_over && (ready == 0 || self.left == 0) => return Ok(0),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => {
                    let count = self.pipe.read(buffer)?;
                    self.left -= if is_over { count.min(self.left) } else { 0 };
                    return Ok(count);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn pass_on_progress(stdout: impl BufRead, watch: &dyn Watch) {
    for line in stdout.lines().map_while(std::result::Result::ok) {
        if let Ok(Said { done, total, unit }) = serde_json::from_str(&line) {
            watch.progress(done, total, &unit);
        }
    }
}

fn stderr_tail(mut stderr: impl Read) -> String {
    let mut tail = VecDeque::new();
    let mut buffer = [0; STDERR_TAIL_BYTES];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        tail.extend(buffer.iter().take(count));
        tail.drain(..tail.len().saturating_sub(STDERR_TAIL_BYTES));
    }
    String::from_utf8_lossy(tail.make_contiguous()).into_owned()
}

/// Waits for the child's end, or ends it with all that it started.
fn reap(child: &mut Child, watch: &dyn Watch) -> std::io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while waitid(WaitId::Pid(pid), look)?.is_none() && !watch.cancelled() {
        sleep(Duration::from_millis(5));
    }
    if watch.cancelled() {
        // Stopped, it starts nothing more, and goes on adopting: nobody below it escapes.
        let _ = kill_process(pid, Signal::STOP);
        end_below(pid);
    }
    // What is left of its group, which still exists, because it is reaped last. Fails only when
    // nobody is left.
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
    problem.causes.extend(
        (!stderr_tail.trim().is_empty())
            .then(|| format!("the end of its output:\n{}", stderr_tail.trim_end())),
    );
    problem
}
