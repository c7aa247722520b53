//! Sizes, times and counts as text for people.

use std::time::Duration;

/// `98.4 MB`, in powers of ten.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `4 ms`, `2.35 s`, `7 min 02 s`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 1.0 => format!("{} ms", time.as_millis()),
        s if s < 60.0 => format!("{s:.2} s"),
        _ => format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60),
    }
}

/// `1 part`, `3 parts`.
pub fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A sort key that puts `blk.10.x` after `blk.2.x`: numbers between dots are compared by value.
pub fn natural_order(name: &str) -> Vec<(u64, &str)> {
    name.split('.')
        .map(|component| (component.parse().unwrap_or(u64::MAX), component))
        .collect()
}

/// Reads `6000000000`, `6GB` or `512 MB`, in powers of ten.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a number of bytes, or one with kB, MB or GB: 6GB";
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_bytes = match unit.trim() {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(EXPECTED.into()),
    };
    if let Ok(number) = number.parse::<u64>()
        && let Some(bytes) = number.checked_mul(unit_bytes)
    {
        return Ok(bytes);
    }
    Err(EXPECTED.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_formatted() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(98_362_432), "98.4 MB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert_eq!(bytes(1_241_509_888), "1.2 GB");
        assert_eq!(duration(Duration::from_millis(4)), "4 ms");
        assert_eq!(duration(Duration::from_secs(422)), "7 min 02 s");
    }

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_bytes("6000"), Ok(6000));
        assert_eq!(parse_bytes("6GB"), Ok(6_000_000_000));
        assert_eq!(parse_bytes("512 MB"), Ok(512_000_000));
        for bad in ["", "GB", "6 Gb", "-1", "99999999999GB", "1.5GB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
