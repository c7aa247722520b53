//! The program at work, and its end: good, bad, or together with the build.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{
    Signal, getppid, kill_current_process_group, parent_process_death_signal,
    set_parent_process_death_signal,
};

use super::folder::Folder;
use super::{Call, INPUTS};
use crate::base::{Code, Context, Problem, Result, end_descendants, open_file, quoted, tail};

/// How much of what the program said last is shown.
const STDERR_TAIL_BYTES: u64 = 4096;

/// As much of a script's first line is read.
const MAX_LINE_BYTES: u64 = 512;

/// How often is looked whether it has ended.
const GLANCE: Duration = Duration::from_millis(10);

/// Runs the program to its end, which must be a good one.
pub(super) fn run(call: &Call, folder: &Folder) -> Result<()> {
    let failed = || format!("start `{}`", call.program);
    // Into a file: nobody has to listen, and what it leaves running cannot hold the other end of a
    // pipe.
    let said = File::create(&folder.said)
        .context(Code::Io, || format!("make {}", folder.said.display()))?;
    let program = if call.program.starts_with(INPUTS) {
        folder.work.join(&call.program)
    } else {
        call.program.clone().into()
    };
    let mut child = Command::new(&program)
        .arg0(&call.program)
        .args(&call.args)
        .env_clear()
        .env("TMPDIR", folder.tmp())
        .envs(&call.env)
        .current_dir(&folder.work)
        .stdin(Stdio::null())
        .stdout(said.try_clone().context(Code::CommandStart, failed)?)
        .stderr(said)
        .spawn()
        .context(Code::CommandStart, failed)
        .map_err(|problem| without_interpreter(problem, &program))?;
    let status = attend(&mut child).context(Code::CommandStart, || {
        format!("wait for `{}`", call.program)
    })?;
    // What it left running could go on writing.
    end_descendants();
    if status.success() {
        Ok(())
    } else {
        Err(unsuccessful(call, status, &folder.said))
    }
}

/// A script whose interpreter is not there "is not there" itself, as the kernel says it: `problem`
/// then names the interpreter.
fn without_interpreter(problem: Problem, program: &Path) -> Problem {
    let mut line = String::new();
    let read = open_file(program)
        .and_then(|file| BufReader::new(file.take(MAX_LINE_BYTES)).read_line(&mut line));
    let Some(interpreter) = line
        .trim_end_matches('\n')
        .strip_prefix("#!")
        .filter(|_| read.is_ok())
    else {
        return problem;
    };
    if let Some(interpreter) = interpreter.strip_suffix('\r') {
        let message = format!(
            "the lines of the script end as Windows ends them, so that it asks for `{}\\r`",
            interpreter.trim()
        );
        return problem
            .within(message)
            .help("save it with the ends of Unix: sed -i 's/\\r$//' SCRIPT");
    }
    let interpreter = interpreter.trim().split(' ').next().unwrap_or_default();
    match Path::new(interpreter).exists() {
        true => problem,
        false => problem.within(format!(
            "the script's interpreter `{interpreter}` is not there"
        )),
    }
}

/// Waits for the end of `child`. Who stops a build ends the process group that this process and the
/// child are in. If the engine is killed, nobody does; the kernel would end this process alone. So
/// that is put off, and done here to all.
fn attend(child: &mut Child) -> io::Result<ExitStatus> {
    let engine = getppid();
    let leash = parent_process_death_signal()?;
    set_parent_process_death_signal(None)?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if leash.is_some() && getppid() != engine {
            end_descendants();
            kill_current_process_group(Signal::KILL)?;
        }
        sleep(GLANCE);
    };
    set_parent_process_death_signal(leash)?;
    Ok(status)
}

fn unsuccessful(call: &Call, status: ExitStatus, said: &Path) -> Problem {
    let mut problem = Problem::new(
        Code::CommandFailed,
        format!("`{}` failed: {status}", call.program),
    );
    let stderr_tail = tail(said, STDERR_TAIL_BYTES).unwrap_or_default();
    problem.causes.push(match stderr_tail.trim() {
        "" => "it printed nothing".into(),
        words => format!("the end of its output:\n{words}"),
    });
    let memory = match status.signal() == Some(Signal::KILL.as_raw()) {
        true => {
            "the kernel kills a process when memory runs out: raise `memory`, or use fewer --jobs. "
        }
        false => "",
    };
    problem.help(format!("{memory}{}", by_hand(call)))
}

/// How to run it without kiln.
fn by_hand(call: &Call) -> String {
    let env = call
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let words = env
        .chain([call.program.clone()])
        .chain(call.args.iter().cloned());
    let words: Vec<String> = words.map(|word| quoted(&word)).collect();
    format!(
        "to run it by hand: `kiln build PLAN STAGE` writes each of its inputs to out/PLAN/STAGE; \
         with these as inputs/STAGE in an empty folder, run there\nmkdir -p outputs tmp && env -i \
         TMPDIR=\"$PWD/tmp\" {}",
        words.join(" ")
    )
}
