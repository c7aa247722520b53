//! The processes of a build, found by their command lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The processes with a path below `folder` in their command line, as folders of `/proc`. Dead
/// processes have no command line.
pub fn processes_using(folder: &Path) -> Vec<PathBuf> {
    let below = format!("{}/", folder.display());
    let mut found = vec![];
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let command_line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command_line).contains(&below) {
            found.push(process.path());
        }
    }
    found
}

/// `kill -9`.
pub fn kill(process: &Path) {
    let pid = process.file_name().unwrap();
    // The process may have ended.
    let _ = Command::new("kill")
        .arg("-9")
        .arg(pid)
        .stderr(Stdio::null())
        .status()
        .unwrap();
}
