//! What this machine has to give.

use std::fs;
use std::path::Path;

pub(super) use crate::base::parse_bytes;

/// The machine's memory, or the control group's if that is less; `None` where neither is known.
pub(super) fn memory_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_bytes(&text));
    let group = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| group_limit_bytes(&text));
    machine.into_iter().chain(group).min()
}

/// What a build may use of `memory_bytes` unless told otherwise: 80 %. The rest is for kiln itself,
/// the page cache and everybody else.
pub(super) fn budget_bytes(memory_bytes: u64) -> u64 {
    memory_bytes / 5 * 4
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// The lowest limit of a process's control groups (version 2), from its own up to the root.
fn group_limit_bytes(cgroup: &str) -> Option<u64> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limit = |group: &Path| {
        let text =
            fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join("memory.max")).ok()?;
        text.trim().parse().ok()
    };
    Path::new(own).ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(
            total_bytes("MemFree: 1 kB\nMemTotal:       24606912 kB\n"),
            Some(24_606_912 * 1024)
        );
        assert_eq!(total_bytes("nothing"), None);
    }
}
