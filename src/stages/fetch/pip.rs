//! Downloads wheels from a Python package index with the machine's own pip, and so with its index,
//! mirror, proxy and password.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{Machine, clear, complete_path};
use crate::action::Job;
use crate::base::{Code, Context, Problem, Result, tail};

/// Runs pip like `python3 -m pip`, but dies with its parent process, whose id is the first
/// argument. A pip that outlived a killed build would write into a folder that the next build
/// uses.
const RUN_PIP: &str = "import ctypes, importlib.util, os, runpy, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
parent, no_pip = int(sys.argv.pop(1)), int(sys.argv.pop(1))
if os.getppid() != parent: sys.exit('the build is gone')
if importlib.util.find_spec('pip') is None: sys.exit(no_pip)
runpy.run_module('pip', run_name='__main__', alter_sys=True)";

/// How a Python without pip leaves; pip itself leaves with small numbers.
const NO_PIP: i32 = 77;

/// The tags that kiln's tools are built for. The wheel must not depend on the Python that runs pip.
const TAGS: [&str; 10] = [
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
    "--abi",
    "abi3",
    "--abi",
    "none",
];
/// N of `manylinux_2_N_x86_64`. Each is listed, since pip does not infer the older ones.
const GLIBC_MINORS: std::ops::RangeInclusive<u32> = 17..=40;

/// User settings that would make this call of pip fail. Index, mirror, proxy and certificates stay
/// the machine's own.
const OVERRIDDEN: [(&str, &str); 5] = [
    ("PIP_REQUIRE_VIRTUALENV", "0"),
    ("PIP_REQUIRE_HASHES", "0"),
    ("PIP_CONSTRAINT", "/dev/null"),
    ("PIP_DRY_RUN", "0"),
    ("PIP_QUIET", "0"),
];

/// How much of pip's log is read.
const STDERR_TAIL_BYTES: u64 = 16 << 10;
/// How many lines of it a problem shows.
const TAIL_LINES: usize = 12;

/// Downloads the wheel of `requirement` (`NAME==VERSION`) into `folder` and returns its path.
pub(super) fn download(
    machine: &Machine,
    requirement: &str,
    folder: &Path,
    job: &Job,
) -> Result<PathBuf> {
    let complete = complete_path(folder);
    if !complete.exists() {
        clear(folder)?;
        let (fresh, temporary) = (folder.join("pip"), folder.join("tmp"));
        for path in [&fresh, &temporary] {
            fs::create_dir(path).context(Code::Io, || format!("make {}", path.display()))?;
        }
        run(machine, requirement, folder, job)?;
        find_wheel(&fresh)?;
        fs::rename(&fresh, &complete)
            .context(Code::Io, || format!("name {}", complete.display()))?;
    }
    find_wheel(&complete)
}

/// The path of the wheel in `folder`, which must be its only file.
fn find_wheel(folder: &Path) -> Result<PathBuf> {
    let failed = || format!("list {}", folder.display());
    let mut files = vec![];
    for entry in fs::read_dir(folder).context(Code::Io, failed)? {
        files.push(entry.context(Code::Io, failed)?.path());
    }
    if let [file] = files.as_slice()
        && file.extension() == Some("whl".as_ref())
    {
        return Ok(file.clone());
    }
    Err(Problem::new(
        Code::FetchPip,
        format!("pip gave {} files instead of one wheel", files.len()),
    ))
}

fn run(machine: &Machine, requirement: &str, folder: &Path, job: &Job) -> Result<()> {
    let log = folder.join("log");
    let make_log = || format!("make {}", log.display());
    let stdout = File::create(&log).context(Code::Io, make_log)?;
    let stderr = stdout.try_clone().context(Code::Io, make_log)?;
    let mut platforms = vec![];
    for minor in GLIBC_MINORS.rev() {
        platforms.push("--platform".into());
        platforms.push(format!("manylinux_2_{minor}_x86_64"));
    }
    for platform in ["manylinux2014_x86_64", "any"] {
        platforms.push("--platform".into());
        platforms.push(platform.into());
    }
    let mut child = Command::new(&machine.python)
        .args([
            "-c",
            RUN_PIP,
            &std::process::id().to_string(),
            &NO_PIP.to_string(),
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--progress-bar=off",
            "--no-input",
        ])
        .args(TAGS)
        .args(platforms)
        .args(["--dest", "pip", requirement])
        .current_dir(folder)
        .env("TMPDIR", folder.join("tmp"))
        .envs(OVERRIDDEN)
        .env_remove("HF_TOKEN")
        .env_remove("PYTHONPATH")
        .env_remove("PYTHONHOME")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .map_err(|error| lacks_pip(machine).because(&error))?;
    let status = loop {
        if let Some(status) = child
            .try_wait()
            .context(Code::Io, || "wait for pip".into())?
        {
            break status;
        }
        if job.check_cancelled().is_err() {
            child.kill().context(Code::Io, || "end pip".into())?;
            child.wait().context(Code::Io, || "end pip".into())?;
            return job.check_cancelled();
        }
        thread::sleep(Duration::from_millis(50));
        let downloaded = size_of(&folder.join("tmp")).max(size_of(&folder.join("pip")));
        job.progress(downloaded, 0, "B");
    };
    if status.success() {
        return Ok(());
    }
    if status.code() == Some(NO_PIP) {
        return Err(lacks_pip(machine));
    }
    let log_tail = tail(&log, STDERR_TAIL_BYTES).unwrap_or_default();
    let mut lines: Vec<String> = log_tail.lines().map(String::from).collect();
    lines.retain(|line| !line.trim().is_empty());
    let mut problem = Problem::new(
        Code::FetchPip,
        format!("pip could not download `{requirement}` ({status})"),
    )
    .help("try it by hand: python3 -m pip download --no-deps --only-binary=:all: NAME==VERSION");
    problem.causes = lines.split_off(lines.len().saturating_sub(TAIL_LINES));
    Err(problem)
}

fn lacks_pip(machine: &Machine) -> Problem {
    Problem::new(
        Code::ToolMissing,
        format!("`{} -m pip` does not run", machine.python.display()),
    )
    .help("install Python and its pip: apt-get install python3-pip")
}

/// The bytes in all files below `folder`, without those that are removed meanwhile.
fn size_of(folder: &Path) -> u64 {
    let mut size = 0;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size += size_of(&entry.path()),
            Ok(metadata) => size += metadata.len(),
            Err(_) => {}
        }
    }
    size
}
