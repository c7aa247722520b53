//! Runs the program, and kills it if the build is killed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, getppid, kill_current_process_group, parent_process_death_signal,
    set_parent_process_death_signal,
};

use super::folder::Folder;
use super::{Call, INPUTS};
use crate::base::{Code, Context, Problem, Result, kill_descendants, open_file, quoted, tail};

/// How much of the end of the program's output is shown.
const LOG_TAIL_BYTES: u64 = 4096;

/// How much of a script's first line is read.
const MAX_LINE_BYTES: u64 = 512;

/// How often the program is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Runs the program. Fails unless it exits with code 0.
pub(super) fn run(call: &Call, folder: &Folder) -> Result<()> {
    let failed = || format!("start `{}`", call.program);
    // A file and not a pipe: it needs no reader, and a background process of the program cannot
    // keep it open.
    let log =
        File::create(&folder.log).context(Code::Io, || format!("make {}", folder.log.display()))?;
    let program = if call.program.starts_with(INPUTS) {
        folder.work.join(&call.program)
    } else {
        call.program.clone().into()
    };
    let mut command = Command::new(&program);
    command
        .arg0(&call.program)
        .args(&call.args)
        .env_clear()
        .env("TMPDIR", folder.tmp())
        .envs(&call.env)
        .current_dir(&folder.work)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context(Code::CommandStart, failed)?)
        .stderr(log);

    // Before the program starts: it must not outlive an engine that is killed right after the start.
    let engine = Engine::detach().context(Code::CommandStart, failed)?;
    let ended = match command.spawn() {
        Ok(mut child) => wait(&mut child, &engine).context(Code::CommandStart, || {
            format!("wait for `{}`", call.program)
        }),
        Err(error) => Err(error)
            .context(Code::CommandStart, failed)
            .map_err(|problem| explain_interpreter(problem, &program)),
    };
    engine.attach().context(Code::CommandStart, failed)?;
    let status = ended?;
    // A background process of the program could still write outputs.
    kill_descendants();
    if status.success() {
        Ok(())
    } else {
        Err(unsuccessful(call, status, &folder.log))
    }
}

/// If the interpreter of a script is missing, the kernel reports the script as missing. Then adds
/// the name of the interpreter to `problem`.
fn explain_interpreter(problem: Problem, program: &Path) -> Problem {
    let Ok(line) = read_first_line(program) else {
        return problem;
    };
    let Some(interpreter) = line.trim_end_matches('\n').strip_prefix("#!") else {
        return problem;
    };
    if let Some(interpreter) = interpreter.strip_suffix('\r') {
        let message = format!(
            "the script has the line endings of Windows, so that its interpreter is `{}\\r`",
            interpreter.trim()
        );
        return problem
            .within(message)
            .help("save it with the line endings of Unix: sed -i 's/\\r$//' SCRIPT");
    }
    let interpreter = interpreter.trim().split(' ').next().unwrap_or_default();
    if Path::new(interpreter).exists() {
        return problem;
    }
    problem.within(format!(
        "the script's interpreter `{interpreter}` is not there"
    ))
}

fn read_first_line(path: &Path) -> io::Result<String> {
    let mut line = String::new();
    let file = open_file(path)?.take(MAX_LINE_BYTES);
    BufReader::new(file).read_line(&mut line)?;
    Ok(line)
}

/// The process that this one works for.
///
/// An interrupted build kills the process group of this process and the child. But if the engine
/// itself is killed, the kernel would kill this process only (its parent death signal). So the
/// signal is off while the child runs, and [`wait`] kills the group instead.
struct Engine {
    pid: Option<Pid>,
    death_signal: Option<Signal>,
}

impl Engine {
    /// Turns the parent death signal off.
    fn detach() -> io::Result<Engine> {
        let engine = Engine {
            pid: getppid(),
            death_signal: parent_process_death_signal()?,
        };
        set_parent_process_death_signal(None)?;
        Ok(engine)
    }

    /// Whether it was killed.
    fn is_gone(&self) -> bool {
        self.death_signal.is_some() && getppid() != self.pid
    }

    /// Turns the parent death signal on again, if it was on.
    fn attach(self) -> io::Result<()> {
        Ok(set_parent_process_death_signal(self.death_signal)?)
    }
}

/// Waits for the end of `child`. If the engine is gone, kills the whole process group.
fn wait(child: &mut Child, engine: &Engine) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if engine.is_gone() {
            kill_descendants();
            kill_current_process_group(Signal::KILL)?;
        }
        sleep(POLL_INTERVAL);
    }
}

fn unsuccessful(call: &Call, status: ExitStatus, log: &Path) -> Problem {
    let mut problem = Problem::new(
        Code::CommandFailed,
        format!("`{}` failed: {status}", call.program),
    );
    let log_tail = tail(log, LOG_TAIL_BYTES).unwrap_or_default();
    problem.causes.push(match log_tail.trim() {
        "" => "it printed nothing".into(),
        lines => format!("its last output:\n{lines}"),
    });
    let memory = if status.signal() == Some(Signal::KILL.as_raw()) {
        "the kernel kills a process when memory runs out: raise `memory`, or use fewer --jobs. "
    } else {
        ""
    };
    problem.help(format!("{memory}{}", run_by_hand(call)))
}

/// Help: how to run the program without kiln.
fn run_by_hand(call: &Call) -> String {
    let mut words = vec![];
    for (name, value) in &call.env {
        words.push(quoted(&format!("{name}={value}")));
    }
    words.push(quoted(&call.program));
    words.extend(call.args.iter().map(|arg| quoted(arg)));
    format!(
        "to run it by hand: `kiln build PLAN STAGE` writes each of its inputs to out/PLAN/STAGE; \
         with these as inputs/STAGE in an empty folder, run there\nmkdir -p outputs tmp && env -i \
         TMPDIR=\"$PWD/tmp\" {}",
        words.join(" ")
    )
}
