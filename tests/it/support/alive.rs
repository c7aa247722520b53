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

/// Waits until something is true, a minute at most.
pub fn wait_until(what: &str, is_true: impl Fn() -> bool) {
    wait_for(what, || is_true().then_some(()));
}

/// Waits until there is a value, a minute at most.
///
/// Of use for a lock that was just given back: a process that another test starts at that moment has
/// a copy of every open file, and with it of the lock, until it executes its program.
pub fn wait_for<T>(what: &str, find: impl Fn() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        sleep(Duration::from_millis(10));
    }
}
