//! One option for each item, the least error in all, within a budget of bytes: the multiple-choice
//! knapsack, by dynamic programming over bytes.

/// One way to hold an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What it takes.
    pub bytes: u64,
    /// What it costs in accuracy; not negative, and a sum over items means something.
    pub error: f64,
}

/// Steps into which the budget is divided at most. The table of choices has a byte for each item
/// and step.
const MAX_STEPS: u64 = 1 << 16;

/// The index of the option of each item with the least sum of errors whose bytes are at most
/// `budget` in all; of equals, the one that takes fewer bytes. `None` if not even the smallest
/// options fit. Bytes are counted in units of their greatest common divisor, exactly; where that
/// gives more than 65,536 steps, in coarser units and rounded up, so that the budget is kept all
/// the same.
pub fn choose(items: &[Vec<Choice>], budget: u64) -> Option<Vec<usize>> {
    let least: Vec<u64> = items
        .iter()
        .map(|item| item.iter().map(|choice| choice.bytes).min())
        .collect::<Option<_>>()?;
    // What every option takes is spent already; only what is above it is to be decided.
    let room = budget.checked_sub(least.iter().sum())?;
    let above = |item: usize, choice: &Choice| choice.bytes - least[item];
    let extras = || {
        items
            .iter()
            .enumerate()
            .flat_map(|(at, item)| item.iter().map(move |choice| above(at, choice)))
    };
    let most: u64 = items
        .iter()
        .enumerate()
        .map(|(at, item)| item.iter().map(|c| above(at, c)).max().unwrap_or(0))
        .sum();
    let room = room.min(most);
    let unit = extras().fold(0, gcd).max(room.div_ceil(MAX_STEPS)).max(1);
    let steps = (room / unit) as usize;

    // errors[s]: the least error of the items so far within s units.
    let mut errors = vec![0.0; steps + 1];
    let mut picked: Vec<Vec<u8>> = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let mut best = vec![f64::INFINITY; steps + 1];
        let mut pick = vec![0u8; steps + 1];
        let mut order: Vec<usize> = (0..item.len()).collect();
        order.sort_by_key(|option| item[*option].bytes);
        for option in order {
            let needs = above(at, &item[option]).div_ceil(unit) as usize;
            for step in needs..=steps {
                let error = errors[step - needs] + item[option].error;
                if error < best[step] {
                    (best[step], pick[step]) = (error, option as u8);
                }
            }
        }
        errors = best;
        picked.push(pick);
    }
    // The fewest bytes that reach the least error.
    let least_error = errors.last().copied()?;
    let mut step = errors.iter().position(|error| *error == least_error)?;
    let mut chosen = vec![0; items.len()];
    for (at, item) in items.iter().enumerate().rev() {
        let option = usize::from(picked[at][step]);
        chosen[at] = option;
        step -= above(at, &item[option]).div_ceil(unit) as usize;
    }
    Some(chosen)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cost(items: &[Vec<Choice>], chosen: &[usize]) -> (u64, f64) {
        let picked = items.iter().zip(chosen).map(|(item, option)| item[*option]);
        picked.fold((0, 0.0), |(bytes, error), choice| {
            (bytes + choice.bytes, error + choice.error)
        })
    }

    /// By trying everything.
    fn least_error(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = items.split_first() else {
            return Some(0.0);
        };
        let with = |choice: &Choice| {
            Some(choice.error + least_error(rest, budget.checked_sub(choice.bytes)?)?)
        };
        first.iter().filter_map(with).reduce(f64::min)
    }

    proptest! {
        #[test]
        fn nothing_within_the_budget_is_better(
            items in prop::collection::vec(prop::collection::vec((1..40u64, 0..100u32), 1..4), 1..7),
            budget in 0..250u64,
        ) {
            let option = |(bytes, error): &(u64, u32)| Choice { bytes: bytes * 512, error: f64::from(*error) };
            let items: Vec<Vec<Choice>> = items.iter().map(|item| item.iter().map(option).collect()).collect();
            let chosen = choose(&items, budget * 512);
            let found = chosen.map(|chosen| {
                let (bytes, error) = cost(&items, &chosen);
                assert!(bytes <= budget * 512);
                error
            });
            prop_assert_eq!(found, least_error(&items, budget * 512));
        }
    }

    #[test]
    fn sizes_without_a_common_divisor_keep_the_budget() {
        let item = |n: u64| {
            vec![
                Choice {
                    bytes: 1_000_003 + n,
                    error: 1.0,
                },
                Choice {
                    bytes: 2_000_029 + n,
                    error: 0.0,
                },
            ]
        };
        let items: Vec<Vec<Choice>> = (0..50).map(item).collect();
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
    fn of_equals_the_smaller() {
        let items = [vec![
            Choice {
                bytes: 9,
                error: 0.5,
            },
            Choice {
                bytes: 3,
                error: 0.5,
            },
        ]];
        assert_eq!(choose(&items, 100), Some(vec![1]));
        assert_eq!(choose(&[], 0), Some(vec![]));
    }
}
