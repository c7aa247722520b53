//! Processes that a test started, and whether they have ended.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Whether any thread of the process is alive: the first may be dead while others still hold the
/// process's files, and their locks.
pub fn is_alive(pid: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let stat =
        |thread: fs::DirEntry| fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
    threads
        .map(stat)
        .any(|stat| !stat.is_empty() && !stat.contains(") Z ") && !stat.contains(") X "))
}

/// Waits a minute at most.
pub fn wait_until(what: &str, is_true: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_true() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        sleep(Duration::from_millis(10));
    }
}
