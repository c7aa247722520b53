//! Ends the descendants of a process. A daemon leaves its process group and its parent, so that
//! neither a signal to the group nor waiting for the parent ends it. But it stays below an ancestor
//! that adopts orphans.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};

use super::{Code, Context, Result};

/// Time between two scans of the process table.
const SCAN_INTERVAL: Duration = Duration::from_millis(2);
/// After this many scans, the processes that are left cannot be killed: they hang in the kernel.
const MAX_SCANS: usize = 500;

/// From now on, an orphan among the descendants of this process becomes its child.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context(Code::ExecuteOrphans, || "adopt orphans".into())
}

/// Kills and reaps all descendants of this process. Nothing else may wait for a child of it.
pub fn kill_descendants() {
    kill_descendants_of(getpid());
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Kills all descendants of the process `pid`, which must adopt orphans and start no process in the
/// meantime.
pub fn kill_descendants_of(pid: Pid) {
    // A scan is no snapshot: the next one finds processes that were started or adopted meanwhile.
    let mut scans_without_live = 0;
    for _ in 0..MAX_SCANS {
        let mut found_live = false;
        for (pid, is_alive) in descendants(pid) {
            found_live |= is_alive;
            // Also a process that seems dead: it may be that only its first thread is.
            let _ = kill_process(pid, Signal::KILL);
        }
        scans_without_live = if found_live {
            0
        } else {
            scans_without_live + 1
        };
        if scans_without_live == 2 {
            return;
        }
        sleep(SCAN_INTERVAL);
    }
}

/// The descendants of `pid`, and whether they are alive, by one scan of all processes.
fn descendants(pid: Pid) -> Vec<(Pid, bool)> {
    let mut children: BTreeMap<i32, Vec<(i32, bool)>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Ok(child) = name.to_str().unwrap_or_default().parse() else {
            continue;
        };
        let Ok(stat) = fs::read(entry.path().join("stat")) else {
            continue;
        };
        if let Some((parent, is_alive)) = parse_stat(&String::from_utf8_lossy(&stat)) {
            children.entry(parent).or_default().push((child, is_alive));
        }
    }
    let mut found = vec![];
    let mut parents = vec![pid.as_raw_nonzero().get()];
    while let Some(parent) = parents.pop() {
        for (child, is_alive) in children.remove(&parent).unwrap_or_default() {
            parents.push(child);
            if let Some(pid) = Pid::from_raw(child) {
                found.push((pid, is_alive));
            }
        }
    }
    found
}

/// The parent in the text of `/proc/PID/stat`, and whether the process is alive. The name of the
/// process, in parentheses, may contain anything.
fn parse_stat(stat: &str) -> Option<(i32, bool)> {
    let mut words = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let is_alive = !matches!(words.next()?, "Z" | "X");
    Some((words.next()?.parse().ok()?, is_alive))
}

#[cfg(test)]
mod tests {
    use super::parse_stat;

    #[test]
    fn the_process_name_may_contain_anything() {
        assert_eq!(parse_stat("7 (sh) S 3 7 7 0"), Some((3, true)));
        assert_eq!(parse_stat("7 (a) Z 1 (b) Z 4 7"), Some((4, false)));
        assert_eq!(parse_stat("7 (sh"), None);
    }
}
