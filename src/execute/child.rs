//! The parent's side of a child process: it starts `kiln work`, listens, and buries it.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, sleep};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::work::{Reply, Said};
use super::{Ran, Watch};
use crate::action::{Action, Demand};
use crate::base::{Context, Problem, Result};
use crate::store::Disk;

/// How much of what a dead child wrote to standard error is shown.
const LAST_WORDS_BYTES: usize = 4096;

/// What the child inherits. Other variables could change what a library does without being in the key.
const INHERITED: [&str; 3] = ["PATH", "HOME", "LD_LIBRARY_PATH"];

/// Runs `action` in a child process. It dies with this thread, and alone.
pub(super) fn run(program: &Path, store: &Disk, action: &Action, demand: &Demand, watch: &dyn Watch) -> Result<Ran> {
    let scratch = store.scratch()?;
    let (order, result) = (scratch.path().join("action.json"), scratch.path().join("result.json"));
    let spelled = serde_json::to_vec(action).context("kiln::execute::io", || "spell an action".into())?;
    fs::write(&order, spelled).context("kiln::execute::io", || format!("write {}", order.display()))?;

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
        .envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .env("TMPDIR", scratch.path())
        .env("RAYON_NUM_THREADS", demand.threads.to_string())
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("kiln::execute::spawn", || format!("start {}", program.display()))?;

    let (status, last_words) = attend(&mut child, watch)?;
    if status.success() {
        let reply = fs::read(&result).context("kiln::execute::io", || format!("read {}", result.display()))?;
        let reply = serde_json::from_slice(&reply)
            .context("kiln::execute::io", || format!("understand {}", result.display()))?;
        return match reply {
            Reply::Done { outputs, peak_memory_bytes } => Ok(Ran { outputs, peak_memory_bytes }),
            Reply::Failed(problem) => Err(problem),
        };
    }
    if watch.cancelled() {
        return Err(Problem::cancelled());
    }
    Err(crashed(&action.stage, status, &last_words))
}

/// Listens until the child ends, or ends it when the build is being stopped.
fn attend(child: &mut Child, watch: &dyn Watch) -> Result<(ExitStatus, String)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || stdout.map(|stdout| pass_on_progress(BufReader::new(stdout), watch)));
        let last_words = scope.spawn(move || stderr.map(last_words).unwrap_or_default());
        let status = bury(child, watch).context("kiln::execute::io", || "wait for a child process".into())?;
        Ok((status, last_words.join().unwrap_or_default()))
    })
}

fn pass_on_progress(stdout: impl BufRead, watch: &dyn Watch) {
    for line in stdout.lines().map_while(std::result::Result::ok) {
        if let Ok(Said { done, total, unit }) = serde_json::from_str(&line) {
            watch.progress(done, total, &unit);
        }
    }
}

fn last_words(mut stderr: impl Read) -> String {
    let mut tail = VecDeque::new();
    let mut buffer = [0; LAST_WORDS_BYTES];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        tail.extend(buffer.iter().take(count));
        tail.drain(..tail.len().saturating_sub(LAST_WORDS_BYTES));
    }
    String::from_utf8_lossy(tail.make_contiguous()).into_owned()
}

/// Waits for the child's end, then takes whatever it started with it into the grave. Its own process
/// group still exists at that point, because it is reaped last.
fn bury(child: &mut Child, watch: &dyn Watch) -> std::io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while waitid(WaitId::Pid(pid), look)?.is_none() && !watch.cancelled() {
        sleep(Duration::from_millis(5));
    }
    // Fails only when nobody is left.
    let _ = kill_process_group(pid, Signal::KILL);
    child.wait()
}

fn crashed(stage: &str, status: ExitStatus, last_words: &str) -> Problem {
    let help = if status.signal() == Some(Signal::KILL.as_raw()) {
        "the kernel kills a process when memory runs out: use fewer --jobs, or a machine with more memory"
    } else {
        "nothing of this attempt was kept, and the other stages are not touched; what its process said last is above. \
         If it happens again, pin another version of the tool in [tools]"
    };
    let mut problem =
        Problem::new("kiln::execute::crashed", format!("the process of stage `{stage}` died: {status}")).help(help);
    problem.causes.extend((!last_words.trim().is_empty()).then(|| format!("it said last:\n{}", last_words.trim_end())));
    problem
}
