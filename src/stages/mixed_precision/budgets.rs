//! One choice for each item with the least sum of errors within a budget of bytes, a budget of time,
//! or both.
//!
//! One budget is solved exactly, by [`knapsack`]. For two budgets, time becomes a part of the error:
//! each nanosecond costs a multiplier, the bytes stay a budget, and the multiplier is found by
//! bisection (Lagrangian relaxation; Handler and Zang, "A dual algorithm for the constrained
//! shortest path problem", 1980). This misses assignments that no multiplier makes the best, so the
//! best one within both budgets is then improved by changes of one or two items. The result is
//! within the budgets always, and near the optimum: the tests compare it with all combinations of
//! small cases.

use super::knapsack;

/// One way to store an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    /// Its size.
    pub bytes: u64,
    /// Its time.
    pub time_ns: u64,
    /// Its cost in accuracy; not negative, and additive over items.
    pub error: f64,
}

/// Limits of the sums over all items; `None` stands for no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budgets {
    pub bytes: Option<u64>,
    pub time_ns: Option<u64>,
}

/// Sums over all items.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub bytes: u64,
    pub time_ns: u64,
    pub error: f64,
}

/// Halvings of the interval of the multiplier.
const BISECTIONS: u32 = 24;
/// Doublings of the multiplier until the time is met. The fastest assignment is known to meet it.
const DOUBLINGS: u32 = 24;

impl Budgets {
    fn hold(&self, sums: &Sums) -> bool {
        let fit = |value: u64, limit: Option<u64>| limit.is_none_or(|limit| value <= limit);
        fit(sums.bytes, self.bytes) && fit(sums.time_ns, self.time_ns)
    }
}

impl Sums {
    /// The sums of the choice `chosen[i]` of each item i.
    pub(super) fn of(items: &[Vec<Choice>], chosen: &[usize]) -> Sums {
        let mut sums = Sums::default();
        for (item, &index) in items.iter().zip(chosen) {
            sums.bytes += item[index].bytes;
            sums.time_ns += item[index].time_ns;
            sums.error += item[index].error;
        }
        sums
    }

    /// With `new` instead of `old`.
    fn replace(self, old: &Choice, new: &Choice) -> Sums {
        Sums {
            bytes: self.bytes - old.bytes + new.bytes,
            time_ns: self.time_ns - old.time_ns + new.time_ns,
            error: self.error - old.error + new.error,
        }
    }
}

/// The index of the choice of each item. `None` if nothing was found within the budgets: with one
/// budget, nothing is; with two, not even the fastest assignment within the bytes.
pub(super) fn choose(items: &[Vec<Choice>], budgets: Budgets) -> Option<Vec<usize>> {
    let bytes = |choice: &Choice| choice.bytes;
    let time = |choice: &Choice| choice.time_ns;
    let error = |choice: &Choice| choice.error;
    match (budgets.bytes, budgets.time_ns) {
        (Some(budget), Some(_)) => choose_within_both(items, budget, budgets),
        (Some(budget), None) => solve(items, budget, bytes, error),
        (None, Some(budget)) => solve(items, budget, time, error),
        (None, None) => solve(items, u64::MAX, bytes, error),
    }
}

/// The fastest assignment within a budget of bytes.
pub(super) fn fastest(items: &[Vec<Choice>], bytes: Option<u64>) -> Option<Vec<usize>> {
    let bytes = bytes.unwrap_or(u64::MAX);
    solve(
        items,
        bytes,
        |choice| choice.bytes,
        |choice| choice.time_ns as f64,
    )
}

fn choose_within_both(items: &[Vec<Choice>], bytes: u64, budgets: Budgets) -> Option<Vec<usize>> {
    let weighted = |multiplier: f64| {
        let error = |choice: &Choice| choice.error + multiplier * choice.time_ns as f64;
        solve(items, bytes, |choice| choice.bytes, error)
    };
    let cheapest = weighted(0.0)?;
    if budgets.hold(&Sums::of(items, &cheapest)) {
        return Some(cheapest);
    }
    let mut best = fastest(items, Some(bytes))?;
    if !budgets.hold(&Sums::of(items, &best)) {
        return None;
    }
    let mut least_error = Sums::of(items, &best).error;
    let mut meets_time = |multiplier: f64| -> Option<bool> {
        let chosen = weighted(multiplier)?;
        let sums = Sums::of(items, &chosen);
        if !budgets.hold(&sums) {
            return Some(false);
        }
        if sums.error < least_error {
            (least_error, best) = (sums.error, chosen);
        }
        Some(true)
    };
    let (mut low, mut high) = (0.0, first_multiplier(items));
    for _ in 0..DOUBLINGS {
        if meets_time(high)? {
            break;
        }
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..BISECTIONS {
        let middle = (low + high) / 2.0;
        if meets_time(middle)? {
            high = middle;
        } else {
            low = middle;
        }
    }
    improve(items, budgets, &mut best);
    Some(best)
}

fn solve(
    items: &[Vec<Choice>],
    budget: u64,
    size: impl Fn(&Choice) -> u64,
    error: impl Fn(&Choice) -> f64,
) -> Option<Vec<usize>> {
    let mut sized = vec![];
    for item in items {
        let mut choices = vec![];
        for choice in item {
            choices.push(knapsack::Choice {
                size: size(choice),
                error: error(choice),
            });
        }
        sized.push(choices);
    }
    knapsack::choose(&sized, budget)
}

/// A multiplier at which errors and times are of the same size.
fn first_multiplier(items: &[Vec<Choice>]) -> f64 {
    let (mut error, mut time_ns) = (0.0, 0u64);
    for choice in items.iter().flatten() {
        error += choice.error;
        time_ns = time_ns.saturating_add(choice.time_ns);
    }
    error / time_ns.max(1) as f64
}

/// Repeats the change of one or two items that lowers the error most within the budgets, until
/// there is none.
fn improve(items: &[Vec<Choice>], budgets: Budgets, chosen: &mut [usize]) {
    loop {
        let current = Sums::of(items, chosen);
        // A change by rounding alone is no improvement.
        let mut least_error = current.error * (1.0 - 1e-12);
        let mut change: Option<[(usize, usize); 2]> = None;
        let mut consider = |sums: Sums, items: [(usize, usize); 2]| {
            if sums.error < least_error && budgets.hold(&sums) {
                (least_error, change) = (sums.error, Some(items));
            }
        };
        for (a, item) in items.iter().enumerate() {
            for (to_a, choice) in item.iter().enumerate() {
                let first = current.replace(&item[chosen[a]], choice);
                consider(first, [(a, to_a); 2]);
                for (b, other) in items.iter().enumerate().skip(a + 1) {
                    for (to_b, choice) in other.iter().enumerate() {
                        let both = first.replace(&other[chosen[b]], choice);
                        consider(both, [(a, to_a), (b, to_b)]);
                    }
                }
            }
        }
        let Some(changes) = change else {
            return;
        };
        for (item, choice) in changes {
            chosen[item] = choice;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection;
    use proptest::prelude::*;

    /// The least error within the budgets, by trying all combinations.
    fn least_error(items: &[Vec<Choice>], budgets: Budgets) -> Option<f64> {
        let mut least: Option<f64> = None;
        let mut chosen = vec![0; items.len()];
        loop {
            let sums = Sums::of(items, &chosen);
            if budgets.hold(&sums) {
                least = Some(least.map_or(sums.error, |least| least.min(sums.error)));
            }
            // The next combination.
            let mut index = 0;
            while index < items.len() && chosen[index] + 1 == items[index].len() {
                chosen[index] = 0;
                index += 1;
            }
            if index == items.len() {
                return least;
            }
            chosen[index] += 1;
        }
    }

    fn items(numbers: Vec<Vec<(u64, u64, u32)>>) -> Vec<Vec<Choice>> {
        let choice = |(bytes, time_ns, error): (u64, u64, u32)| Choice {
            bytes,
            time_ns,
            error: error.into(),
        };
        let item = |item: Vec<_>| item.into_iter().map(choice).collect();
        numbers.into_iter().map(item).collect()
    }

    fn numbers() -> impl Strategy<Value = Vec<Vec<(u64, u64, u32)>>> {
        collection::vec(collection::vec((1..40u64, 1..40u64, 0..100u32), 1..4), 1..8)
    }

    proptest! {
        /// The gap to the optimum is at most the largest error of an item.
        #[test]
        fn two_budgets_are_met_near_the_optimum(
            numbers in numbers(), bytes in 0..250u64, time_ns in 0..250u64,
        ) {
            let items = items(numbers);
            let budgets = Budgets { bytes: Some(bytes), time_ns: Some(time_ns) };
            let least = least_error(&items, budgets);
            let Some(chosen) = choose(&items, budgets) else {
                prop_assert_eq!(least, None);
                return Ok(());
            };
            let sums = Sums::of(&items, &chosen);
            prop_assert!(budgets.hold(&sums), "{:?}", sums);
            let gap = sums.error - least.unwrap();
            let largest = items.iter().flatten().map(|choice| choice.error);
            prop_assert!(gap <= largest.fold(0.0, f64::max), "{}", gap);
        }

        #[test]
        fn one_budget_is_met_at_the_optimum(numbers in numbers(), budget in 0..250u64) {
            let items = items(numbers);
            for budgets in [
                Budgets { bytes: Some(budget), time_ns: None },
                Budgets { bytes: None, time_ns: Some(budget) },
            ] {
                let chosen = choose(&items, budgets);
                let error = chosen.map(|chosen| Sums::of(&items, &chosen).error);
                prop_assert_eq!(error, least_error(&items, budgets));
            }
        }
    }

    /// On average, the gap is far below the bound of the test above.
    #[test]
    fn the_gap_is_small_on_average() {
        let mut state = 1u64;
        let mut next = |limit: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % limit
        };
        let (mut found, mut optimum, mut exact, mut cases) = (0.0, 0.0, 0, 0);
        for _ in 0..400 {
            let mut numbers = vec![];
            for _ in 0..7 {
                // Less error costs bytes and time, as in real schemes, with noise.
                let mut item = vec![];
                for level in 1..4 {
                    let (bytes, time) = (8 * level + next(8), 8 * level + next(16));
                    item.push((bytes, time, (90 / (level * level) + next(20)) as u32));
                }
                numbers.push(item);
            }
            let items = items(numbers);
            let budgets = Budgets {
                bytes: Some(100 + next(70)),
                time_ns: Some(110 + next(70)),
            };
            let Some(least) = least_error(&items, budgets) else {
                continue;
            };
            let chosen = choose(&items, budgets).unwrap();
            let error = Sums::of(&items, &chosen).error;
            (found, optimum) = (found + error, optimum + least);
            (exact, cases) = (exact + u32::from(error == least), cases + 1);
        }
        println!("{exact} of {cases} optimal, {found} instead of {optimum}");
        assert!(cases > 300 && exact * 10 > cases * 9);
        assert!(found <= 1.005 * optimum, "{found} instead of {optimum}");
    }

    /// A lower bound of the least error, by Lagrangian duality: no assignment within the budgets
    /// has less error than the best one without budgets, where what it takes costs multipliers and
    /// the budgets are paid back.
    fn bound(items: &[Vec<Choice>], bytes: u64, time_ns: u64) -> f64 {
        let dual = |per_byte: f64, per_ns: f64| {
            let mut sum = -per_byte * bytes as f64 - per_ns * time_ns as f64;
            for item in items {
                let costs = item.iter().map(|choice| {
                    choice.error + per_byte * choice.bytes as f64 + per_ns * choice.time_ns as f64
                });
                sum += costs.fold(f64::INFINITY, f64::min);
            }
            sum
        };
        let over_ns = |per_byte| largest(|log| dual(per_byte, libm::exp(log)));
        largest(|log| over_ns(libm::exp(log)))
    }

    /// The largest value of a function with one maximum, of logarithms from 1e-16 to 1.
    fn largest(value: impl Fn(f64) -> f64) -> f64 {
        let (mut low, mut high) = (-37.0, 0.0);
        for _ in 0..60 {
            let step = (high - low) / 3.0;
            if value(low + step) <= value(high - step) {
                low += step;
            } else {
                high -= step;
            }
        }
        value(low)
    }

    /// As many tensors as a model of 1.5 billion weights has, and the sizes and times of three
    /// schemes.
    #[test]
    fn a_large_case_is_near_the_bound() {
        let mut items = vec![];
        for index in 0..196 {
            let size = [2u64, 1, 1, 2, 13, 13, 13][index % 7];
            let error = (1 + index * 37 % 101) as f64 * 1e-6 * size as f64;
            let choice = |bytes, time_ns, error| Choice {
                bytes: size * bytes,
                time_ns: size * time_ns,
                error,
            };
            items.push(vec![
                choice(562_500, 32_000, 0.0),
                choice(1_004_096, 20_000, error / 50.0),
                choice(535_072, 12_000, error),
            ]);
        }
        let (bytes, time_ns) = (750_000_000, 23_000_000);
        let budgets = Budgets {
            bytes: Some(bytes),
            time_ns: Some(time_ns),
        };
        let found = Sums::of(&items, &choose(&items, budgets).unwrap());
        let bound = bound(&items, bytes, time_ns);
        println!("{found:?}, the optimum is at least {bound}");
        assert!(budgets.hold(&found));
        assert!(found.error >= bound && found.error <= 1.005 * bound);
    }
}
