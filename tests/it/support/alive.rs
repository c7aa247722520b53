//! Whether processes that a test started are still alive.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Whether any thread of the process is alive. The main thread can be dead while other threads keep
/// the files of the process open and locked.
pub fn is_alive(pid: &str) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    for thread in threads.flatten() {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let is_dead = stat.contains(") Z ") || stat.contains(") X ");
        if !stat.is_empty() && !is_dead {
            return true;
        }
    }
    false
}

/// Waits until a condition is true, for at most one minute.
pub fn wait_until(what: &str, is_true: impl Fn() -> bool) {
    wait_for(what, || is_true().then_some(()));
}

/// Waits until there is a value, for at most one minute.
///
/// Needed for a lock that was just released: a process that another test forks at that moment has
/// copies of all open files, and of the lock, until it calls exec.
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
