//! The memory of this machine.

use std::fs;
use std::path::Path;

pub(super) use crate::base::parse_bytes;

/// The memory of the machine, or the limit of the control group if that is less; `None` if neither
/// is known.
pub(super) fn memory_bytes() -> Option<u64> {
    let mut limits = vec![];
    if let Ok(text) = fs::read_to_string("/proc/meminfo") {
        limits.extend(total_bytes(&text));
    }
    if let Ok(text) = fs::read_to_string("/proc/self/cgroup") {
        limits.extend(group_limit_bytes(&text));
    }
    limits.into_iter().min()
}

/// The default memory limit of a build: 80 %. The rest is for kiln itself, the page cache and other
/// processes.
pub(super) fn budget_bytes(memory_bytes: u64) -> u64 {
    memory_bytes / 5 * 4
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let value = value_after(meminfo, "MemTotal:")?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The lowest limit of the control groups (version 2) of a process, from its own up to the root.
fn group_limit_bytes(cgroup: &str) -> Option<u64> {
    let own = value_after(cgroup, "0::/")?;
    let mut limits = vec![];
    for group in Path::new(own).ancestors() {
        let file = Path::new("/sys/fs/cgroup").join(group).join("memory.max");
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Ok(limit) = text.trim().parse::<u64>() {
            limits.push(limit);
        }
    }
    limits.into_iter().min()
}

/// The rest of the first line that begins with `prefix`.
fn value_after<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert_eq!(
            total_bytes("MemFree: 1 kB\nMemTotal:       24606912 kB\n"),
            Some(24_606_912 * 1024)
        );
        assert_eq!(total_bytes("nothing"), None);
    }
}
