//! The multiple-choice knapsack problem, by dynamic programming over sizes: one choice for each item
//! with the least sum of errors within a budget. Sizes are bytes or nanoseconds.

/// One way to store an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    /// What it takes of the budget.
    pub size: u64,
    /// Its cost in accuracy; not negative, and additive over items.
    pub error: f64,
}

/// The budget is divided into this many steps at most. The table of choices has a byte for each
/// item and step.
const MAX_STEPS: u64 = 1 << 16;

/// The index of the choice of each item with the least sum of errors whose sizes sum to at most
/// `budget`; among equals, one with a smaller size. `None` if not even the smallest choices fit.
///
/// Sizes are counted exactly, in units of their greatest common divisor. If that gives more than
/// 65,536 steps, they are counted in coarser units and rounded up, so that the budget still holds.
pub(super) fn choose(items: &[Vec<Choice>], budget: u64) -> Option<Vec<usize>> {
    // The smallest choice of each item is always paid for. Only what is above it is to be
    // decided.
    let (mut spare, mut most_extra) = (budget, 0);
    let mut extras: Vec<Vec<u64>> = vec![];
    for item in items {
        let sizes = item.iter().map(|choice| choice.size);
        let least = sizes.min()?;
        spare = spare.checked_sub(least)?;
        let extra: Vec<u64> = item.iter().map(|choice| choice.size - least).collect();
        most_extra += extra.iter().max()?;
        extras.push(extra);
    }
    let spare = spare.min(most_extra);
    let mut divisor = 0;
    for extra in extras.iter().flatten() {
        divisor = gcd(divisor, *extra);
    }
    let unit = divisor.max(spare.div_ceil(MAX_STEPS)).max(1);
    let steps = (spare / unit) as usize;

    // errors[s]: the least error of the items so far within s units.
    let mut errors = vec![0.0; steps + 1];
    let mut picked: Vec<Vec<u8>> = Vec::with_capacity(items.len());
    for (item, extra) in items.iter().zip(&extras) {
        let mut best = vec![f64::INFINITY; steps + 1];
        let mut pick = vec![0u8; steps + 1];
        let mut order: Vec<usize> = (0..item.len()).collect();
        order.sort_by_key(|choice| item[*choice].size);
        for choice in order {
            let needed = extra[choice].div_ceil(unit) as usize;
            for step in needed..=steps {
                let error = errors[step - needed] + item[choice].error;
                if error < best[step] {
                    (best[step], pick[step]) = (error, choice as u8);
                }
            }
        }
        errors = best;
        picked.push(pick);
    }
    // The fewest units with the least error.
    let least_error = errors[steps];
    let mut step = 0;
    while errors[step] != least_error {
        step += 1;
    }
    let mut chosen = vec![0; items.len()];
    for item in (0..items.len()).rev() {
        let choice = usize::from(picked[item][step]);
        chosen[item] = choice;
        step -= extras[item][choice].div_ceil(unit) as usize;
    }
    Some(chosen)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection;
    use proptest::prelude::*;

    fn cost(items: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
        let (mut bytes, mut error) = (0, 0.0);
        for (item, choice) in items.iter().zip(chosen) {
            bytes += item[*choice].size;
            error += item[*choice].error;
        }
        (bytes, error)
    }

    /// By trying all combinations.
    fn least_error(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else {
            return Some(0.0);
        };
        let mut least: Option<f64> = None;
        for choice in first {
            if let Some(budget) = budget.checked_sub(choice.size)
                && let Some(others) = least_error(rest, budget)
            {
                let error = choice.error + others;
                least = Some(least.unwrap_or(error).min(error));
            }
        }
        least
    }

    proptest! {
        #[test]
        fn the_choice_is_optimal(
            items in collection::vec(collection::vec((1..40u64, 0..100u32), 1..4), 1..7),
            budget in 0..250u64,
        ) {
            let mut choices = vec![];
            for item in items {
                let item = item.into_iter().map(|(bytes, error)| Choice {
                    size: bytes * 512,
                    error: error.into(),
                });
                choices.push(item.collect::<Vec<_>>());
            }
            let budget = budget * 512;
            let mut found = None;
            if let Some(chosen) = choose(&choices, budget) {
                let (bytes, error) = cost(&choices, &chosen);
                assert!(bytes <= budget);
                found = Some(error);
            }
            prop_assert_eq!(found, least_error(&choices, budget));
        }
    }

    #[test]
    fn sizes_without_a_common_divisor_keep_the_budget() {
        let mut items = vec![];
        for n in 0..50 {
            let small = Choice {
                size: 1_000_003 + n,
                error: 1.0,
            };
            let large = Choice {
                size: 2_000_029 + n,
                error: 0.0,
            };
            items.push(vec![small, large]);
        }
        for budget in [50_001_400, 70_000_000, 99_000_000, 200_000_000] {
            let chosen = choose(&items, budget).unwrap();
            let (bytes, error) = cost(&items, &chosen);
            assert!(bytes <= budget);
            let best = 50 - ((budget - 50_001_375) / 1_000_026).min(50);
            assert!(
                error <= best as f64 + 1.0,
                "{budget}: {error} instead of {best}"
            );
        }
        assert_eq!(choose(&items, 50_000_000), None);
    }

    #[test]
    fn among_equal_errors_the_smaller_is_chosen() {
        let items = [vec![
            Choice {
                size: 9,
                error: 0.5,
            },
            Choice {
                size: 3,
                error: 0.5,
            },
        ]];
        assert_eq!(choose(&items, 100), Some(vec![1]));
        assert_eq!(choose(&[], 0), Some(vec![]));
    }
}
