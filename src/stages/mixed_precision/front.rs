//! The Pareto front: assignments of which none is better than another in bytes, time and loss at
//! once.
//!
//! Each byte and each nanosecond costs a multiplier, and each tensor takes its cheapest scheme. A
//! sweep over both multipliers gives the points of the front that lie on its convex hull.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::budgets::{Choice, Sums};
use super::measured::Measured;
#[cfg(test)]
use super::samples;
use crate::base::bytes;

/// Most points.
const MAX_POINTS: usize = 40;
/// Values of a multiplier, apart from 0.
const STEPS: u32 = 64;

/// An assignment of schemes to all measured tensors.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Point {
    /// Bytes of the measured tensors together.
    bytes: u64,
    /// Expected time of a decode call in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_us: Option<f64>,
    /// Expected KL divergence in nats.
    kld: f64,
    /// How many tensors have each scheme.
    schemes: BTreeMap<String, usize>,
}

/// The points of the front, the one with the least loss first; at most 40, at equal distances in
/// this order.
pub(super) fn front(measured: &Measured) -> Vec<Point> {
    let items = &measured.items;
    let mut points: Vec<(Sums, Vec<usize>)> = vec![];
    for per_byte in multipliers(items, |choice| choice.bytes) {
        for per_ns in multipliers(items, |choice| choice.time_ns) {
            let chosen = cheapest(items, per_byte, per_ns);
            points.push((Sums::of(items, &chosen), chosen));
        }
    }
    points.sort_by(|(a, _), (b, _)| {
        let error = a.error.total_cmp(&b.error);
        error
            .then(a.bytes.cmp(&b.bytes))
            .then(a.time_ns.cmp(&b.time_ns))
    });
    // Only a point before it can beat a point.
    let mut front: Vec<(Sums, Vec<usize>)> = vec![];
    for (sums, chosen) in points {
        let beats = |other: &Sums| other.bytes <= sums.bytes && other.time_ns <= sums.time_ns;
        if !front.iter().any(|(other, _)| beats(other)) {
            front.push((sums, chosen));
        }
    }
    let (last, count) = (front.len() - 1, front.len().min(MAX_POINTS));
    let mut selected = vec![];
    for step in 0..count {
        let (sums, chosen) = &front[last * step / (count - 1).max(1)];
        let mut schemes: BTreeMap<String, usize> = BTreeMap::new();
        for cost in measured.costs(chosen) {
            *schemes.entry(cost.scheme.clone()).or_default() += 1;
        }
        selected.push(Point {
            bytes: sums.bytes,
            decode_us: measured.decode_us(sums),
            kld: sums.error,
            schemes,
        });
    }
    selected
}

/// 0, and values from below the least to above the largest error that a unit of `size` saves.
fn multipliers(items: &[Vec<Choice>], size: impl Fn(&Choice) -> u64) -> Vec<f64> {
    let (mut low, mut high) = (f64::INFINITY, 0.0f64);
    for item in items {
        for a in item {
            for b in item {
                if a.error < b.error && size(a) > size(b) {
                    let ratio = (b.error - a.error) / (size(a) - size(b)) as f64;
                    (low, high) = (low.min(ratio), high.max(ratio));
                }
            }
        }
    }
    let mut multipliers = vec![0.0];
    if high > 0.0 {
        let (low, high) = (low / 2.0, high * 2.0);
        for step in 0..STEPS {
            let exponent = f64::from(step) / f64::from(STEPS - 1);
            multipliers.push(low * libm::pow(high / low, exponent));
        }
    }
    multipliers
}

/// The choice of each item with the least error, where bytes and nanoseconds cost their
/// multipliers; among equals, the one with fewer bytes, then less time.
fn cheapest(items: &[Vec<Choice>], per_byte: f64, per_ns: f64) -> Vec<usize> {
    let cost = |choice: &Choice| {
        choice.error + per_byte * choice.bytes as f64 + per_ns * choice.time_ns as f64
    };
    let mut chosen = vec![];
    for item in items {
        let mut best = 0;
        for (index, choice) in item.iter().enumerate() {
            let order = cost(choice).total_cmp(&cost(&item[best]));
            let order = order.then(choice.bytes.cmp(&item[best].bytes));
            if order.then(choice.time_ns.cmp(&item[best].time_ns)).is_lt() {
                best = index;
            }
        }
        chosen.push(best);
    }
    chosen
}

/// The front as a table.
pub(super) fn table(front: &[Point]) -> String {
    let mut schemes: Vec<&str> = vec![];
    for name in front.iter().flat_map(|point| point.schemes.keys()) {
        if !schemes.contains(&name.as_str()) {
            schemes.push(name);
        }
    }
    schemes.sort();
    let mut text = format!("{:>10} {:>10} {:>10}", "KLD, nats", "size", "decode, ms");
    for name in &schemes {
        let _ = write!(text, "  {name}");
    }
    text.push('\n');
    for point in front {
        let decode = match point.decode_us {
            Some(us) => format!("{:.3}", us / 1000.0),
            None => "-".into(),
        };
        let size = bytes(point.bytes);
        let _ = write!(text, "{:>10.2e} {size:>10} {decode:>10}", point.kld);
        for name in &schemes {
            let count = point.schemes.get(*name).copied().unwrap_or(0);
            let _ = write!(text, "  {count:>width$}", width = name.len());
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use samples::{tensor, tensors, times};

    #[test]
    fn the_front_has_no_point_that_another_beats() {
        let (tensors, times) = (tensors(), times());
        let measured = Measured::new(&tensors, Some(&times)).unwrap();
        assert_eq!(
            table(&front(&measured)),
            " KLD, nats       size decode, ms  lpbq-64  native\n\
             \x20   0.00e0     1.8 kB      2.000        0       4\n\
             \x20  5.00e-4     1.8 kB      1.602        1       3\n\
             \x20  1.50e-3     1.7 kB      1.403        2       2\n\
             \x20  3.50e-3     1.7 kB      1.204        3       1\n\
             \x20  6.50e-3     1.7 kB      1.005        4       0\n"
        );
        // Without estimates, and with more points than rows.
        let mut many = vec![];
        for index in 0..100 {
            let name = format!("blk.{index}.ffn_up.weight");
            many.push(tensor(&name, 0.0, f64::from(index + 1) * 1e-4));
        }
        let front = front(&Measured::new(&many, None).unwrap());
        let text = table(&front);
        let lines: Vec<&str> = text.lines().collect();
        assert!((30..=41).contains(&lines.len()), "{text}");
        assert!(
            lines[1].ends_with(" 45.0 kB          -        0     100"),
            "{text}"
        );
        assert!(
            lines
                .last()
                .unwrap()
                .ends_with(" 42.0 kB          -      100       0"),
            "{text}"
        );
    }
}
