//! The processes of a build, found by what they were called with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Those that were called with a path below `folder`, as folders of `/proc`. The dead have no call.
pub fn working_on(folder: &Path) -> Vec<PathBuf> {
    let below = format!("{}/", folder.display());
    let is_ours = |process: &PathBuf| {
        let call = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&call).contains(&below)
    };
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|process| Some(process.ok()?.path()));
    processes.filter(is_ours).collect()
}

/// `kill -9`.
pub fn kill(process: &Path) {
    let pid = process.file_name().unwrap();
    // It may be gone already.
    let _ = Command::new("kill")
        .arg("-9")
        .arg(pid)
        .stderr(Stdio::null())
        .status()
        .unwrap();
}
