//! The processes that this one's children start. A daemon leaves its group and its parent, so that
//! neither a signal to the group nor waiting for the parent ends it; but it stays below the process
//! that says it adopts orphans.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};

use super::{Code, Context, Result};

/// Between two looks at who is left.
const GLANCE: Duration = Duration::from_millis(2);
/// After so many looks, whoever is left cannot be ended: the kernel has it.
const LOOKS: usize = 500;

/// From now on, an orphan among the descendants of this process becomes its child.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context(Code::ExecuteOrphans, || "adopt orphans".into())
}

/// Ends all descendants of this process, which has no child that it still waits for.
pub fn end_descendants() {
    end_below(getpid());
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Ends all descendants of the process `pid`, which adopts orphans and starts nothing meanwhile.
pub fn end_below(pid: Pid) {
    // A look is no snapshot: who was born or adopted meanwhile is seen by the next.
    let mut quiet = 0;
    for _ in 0..LOOKS {
        let found = descendants(pid);
        quiet = if found.iter().any(|(_, is_alive)| *is_alive) {
            0
        } else {
            quiet + 1
        };
        // Also those that seem dead: it may be only their first thread. Who is gone needs no
        // signal.
        found
            .into_iter()
            .for_each(|(pid, _)| _ = kill_process(pid, Signal::KILL));
        if quiet == 2 {
            return;
        }
        sleep(GLANCE);
    }
}

/// The descendants of `pid`, and whether they are alive, by one look at all processes.
fn descendants(pid: Pid) -> Vec<(Pid, bool)> {
    let mut children: BTreeMap<i32, Vec<(i32, bool)>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(stat) = fs::read(entry.path().join("stat")) else {
            continue;
        };
        if let Some((parent, is_alive)) = parent(&String::from_utf8_lossy(&stat)) {
            children.entry(parent).or_default().push((child, is_alive));
        }
    }
    let mut found = vec![];
    let mut parents = vec![pid.as_raw_nonzero().get()];
    while let Some(parent) = parents.pop() {
        for (child, is_alive) in children.remove(&parent).unwrap_or_default() {
            parents.push(child);
            found.extend(Pid::from_raw(child).map(|pid| (pid, is_alive)));
        }
    }
    found
}

/// The parent in the text of `/proc/PID/stat`, and whether the process is alive; its name may hold
/// anything.
fn parent(stat: &str) -> Option<(i32, bool)> {
    let mut words = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let is_alive = !matches!(words.next()?, "Z" | "X");
    Some((words.next()?.parse().ok()?, is_alive))
}

#[cfg(test)]
mod tests {
    use super::parent;

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent("7 (sh) S 3 7 7 0"), Some((3, true)));
        assert_eq!(parent("7 (a) Z 1 (b) Z 4 7"), Some((4, false)));
        assert_eq!(parent("7 (sh"), None);
    }
}
