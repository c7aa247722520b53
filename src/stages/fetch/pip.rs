//! Wheels from a Python package index, through the machine's own pip: its index, mirror, proxy and
//! password hold.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{Machine, clear, whole};
use crate::action::Job;
use crate::base::{Code, Context, Problem, Result, tail};

/// Runs pip as `python3 -m pip` does, but dies with the process that started it, whose id comes
/// first: a pip that outlives a killed build would write into a folder that the next build already
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

/// The wheel must not depend on the Python that happens to run pip: these are the tags that kiln's
/// tools are built for.
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
/// `manylinux_2_N_x86_64`, all spelled out: pip does not conclude from one to the older ones.
const GLIBC_MINORS: std::ops::RangeInclusive<u32> = 17..=40;

/// Settings for other work that would keep pip from this. Index, mirror, proxy and certificates are
/// the machine's own.
const OVERRIDDEN: [(&str, &str); 5] = [
    ("PIP_REQUIRE_VIRTUALENV", "0"),
    ("PIP_REQUIRE_HASHES", "0"),
    ("PIP_CONSTRAINT", "/dev/null"),
    ("PIP_DRY_RUN", "0"),
    ("PIP_QUIET", "0"),
];

/// As much of pip's own words is read.
const STDERR_TAIL_BYTES: u64 = 16 << 10;
/// How many lines of them go into a problem.
const TAIL_LINES: usize = 12;

/// The wheel of `requirement` (`NAME==VERSION`), under its own name in `folder`.
pub(super) fn download(
    machine: &Machine,
    requirement: &str,
    folder: &Path,
    job: &Job,
) -> Result<PathBuf> {
    let done = whole(folder);
    if !done.exists() {
        clear(folder)?;
        let (fresh, temporary) = (folder.join("pip"), folder.join("tmp"));
        for path in [&fresh, &temporary] {
            fs::create_dir(path).context(Code::Io, || format!("make {}", path.display()))?;
        }
        run(machine, requirement, folder, job)?;
        the_wheel(&fresh)?;
        fs::rename(&fresh, &done).context(Code::Io, || format!("name {}", done.display()))?;
    }
    the_wheel(&done)
}

fn the_wheel(folder: &Path) -> Result<PathBuf> {
    let listed: std::io::Result<Vec<_>> =
        fs::read_dir(folder).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
    match listed
        .context(Code::Io, || format!("list {}", folder.display()))?
        .as_slice()
    {
        [wheel]
            if wheel
                .extension()
                .is_some_and(|extension| extension == "whl") =>
        {
            Ok(wheel.clone())
        }
        other => Err(Problem::new(
            Code::FetchPip,
            format!("pip gave {} files instead of one wheel", other.len()),
        )),
    }
}

fn run(machine: &Machine, requirement: &str, folder: &Path, job: &Job) -> Result<()> {
    let log = folder.join("log");
    let output = || File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
    let (out, err) = output().context(Code::Io, || format!("make {}", log.display()))?;
    let platforms = GLIBC_MINORS
        .rev()
        .map(|minor| format!("manylinux_2_{minor}_x86_64"));
    let platforms = platforms.chain(["manylinux2014_x86_64".into(), "any".into()]);
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
        .args(platforms.flat_map(|platform| ["--platform".into(), platform]))
        .args(["--dest", "pip", requirement])
        .current_dir(folder)
        .env("TMPDIR", folder.join("tmp"))
        .envs(OVERRIDDEN)
        .env_remove("HF_TOKEN")
        .env_remove("PYTHONPATH")
        .env_remove("PYTHONHOME")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|error| lacks_pip(machine).because(&error))?;
    let status = loop {
        match child
            .try_wait()
            .context(Code::Io, || "wait for pip".into())?
        {
            Some(status) => break status,
            None if job.check_cancelled().is_err() => {
                let ended = child.kill().and_then(|()| child.wait());
                ended.context(Code::Io, || "end pip".into())?;
                return job.check_cancelled();
            }
            None => thread::sleep(Duration::from_millis(50)),
        }
        job.progress(
            size_of(&folder.join("tmp")).max(size_of(&folder.join("pip"))),
            0,
            "B",
        );
    };
    if status.success() {
        return Ok(());
    }
    if status.code() == Some(NO_PIP) {
        return Err(lacks_pip(machine));
    }
    let words = tail(&log, STDERR_TAIL_BYTES).unwrap_or_default();
    let lines: Vec<&str> = words
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let mut problem = Problem::new(
        Code::FetchPip,
        format!("pip could not download `{requirement}` ({status})"),
    )
    .help("try it by hand: python3 -m pip download --no-deps --only-binary=:all: NAME==VERSION");
    problem.causes = lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| line.to_string())
        .collect();
    Err(problem)
}

fn lacks_pip(machine: &Machine) -> Problem {
    Problem::new(
        Code::ToolMissing,
        format!("`{} -m pip` does not run", machine.python.display()),
    )
    .help("install Python and its pip: apt-get install python3-pip")
}

/// The bytes in all files below `folder`; those that vanish meanwhile do not count.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
