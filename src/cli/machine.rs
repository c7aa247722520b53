//! What this machine has to give.

use std::fs;
use std::path::Path;

/// The machine's memory, or the control group's if that is less; `None` where neither is known.
pub(super) fn memory_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_bytes(&text));
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| group_limit_bytes(&text));
    machine.into_iter().chain(group).min()
}

/// What a build may use of `memory_bytes` unless told otherwise: 80 %. The rest is for kiln itself, the page cache and
/// everybody else.
pub(super) fn budget_bytes(memory_bytes: u64) -> u64 {
    memory_bytes / 5 * 4
}

fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The lowest limit of a process's control groups (version 2), from its own up to the root.
fn group_limit_bytes(cgroup: &str) -> Option<u64> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limit = |group: &Path| {
        let text = fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join("memory.max")).ok()?;
        text.trim().parse().ok()
    };
    Path::new(own).ancestors().filter_map(limit).min()
}

/// Reads `6000000000`, `6GB` or `512 MB`, in powers of ten.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "" | "B" => Some(1),
        "kB" => Some(1_000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        _ => None,
    };
    let bytes = || number.parse::<u64>().ok()?.checked_mul(unit?);
    bytes().ok_or_else(|| "expected a number of bytes, or one with kB, MB or GB: 6GB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_bytes("6000"), Ok(6000));
        assert_eq!(parse_bytes("6GB"), Ok(6_000_000_000));
        assert_eq!(parse_bytes("512 MB"), Ok(512_000_000));
        for bad in ["", "GB", "6 Gb", "-1", "99999999999GB", "1.5GB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(total_bytes("MemFree: 1 kB\nMemTotal:       24606912 kB\n"), Some(24_606_912 * 1024));
        assert_eq!(total_bytes("nothing"), None);
    }
}
