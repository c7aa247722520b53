//! The search for codes and scales: some rows at a time, one a lane, so that each step is the same
//! for all of them. Every lane is computed by the same operations in the same order whatever its
//! neighbours are.
//!
//! 1. Scales are tried without feedback, where each costs one pass over the row. Without second
//!    moments that is all, but that the best is fitted to its codes.
//! 2. The row is rounded column by column under the best of them, each column answering for those
//!    before it.
//! 3. Blocks are chosen again, one after the other, given all the others, as long as that costs
//!    less; the scale is fitted to the codes in between.

use super::metric::{Metric, Triangle};
use crate::model::quant::kernels::Loop;

/// Rows that are rounded side by side.
pub(super) const LANES: usize = 16;

/// A number of each row.
pub(super) type Lanes = [f32; LANES];

/// Integers that are tried for a block, upwards.
const TRIED: usize = 12;

/// The first of them, as a share of the smallest under which nothing of the block is clipped. Those
/// above that one are tried too: a source that is on a grid itself, which the block uses only in
/// part, is met best by an integer that meets its step.
const SMALLEST_TRIED: f32 = 0.6;

/// Scales are tried in steps of this ratio, down and up from the one that just holds the largest
/// value.
pub(super) const STEP: f32 = 1.04;

/// How often all blocks are chosen again.
const SWEEPS: usize = 2;

/// How often a scale is fitted and everything rounded again, where no column answers for others.
const FITS: usize = 2;

/// A new choice must cost so much less: what is below it is the rounding of f32.
const GAIN: f32 = 1e-4;

/// Codes, and the integers that widen them.
#[derive(Clone, Copy)]
pub(super) struct Range {
    /// Smallest and largest code.
    pub(super) codes: [f32; 2],
    /// Largest integer of a block; 1 where blocks have none.
    pub(super) integers: u8,
}

/// Which scales are tried.
pub(super) struct Ratios {
    /// Without feedback, as powers of [`STEP`].
    pub(super) all: std::ops::RangeInclusive<i32>,
    /// With feedback, around the best of those, as powers of `step`.
    pub(super) near: &'static [i32],
    /// May be finer than [`STEP`].
    pub(super) step: f32,
}

/// A search to be run: `spell` makes of a scale one that can be written.
pub(super) struct Search<'a, F> {
    pub(super) tile: Tile<'a>,
    pub(super) ratios: &'a Ratios,
    pub(super) store_scale: F,
}

impl<F: Fn(f32) -> f32> Loop for Search<'_, F> {
    type Output = Rounded;

    #[inline(always)]
    fn run(self) -> Rounded {
        self.tile.search(self.ratios, self.store_scale)
    }
}

/// Rows by position, and what they are rounded to.
pub(super) struct Tile<'a> {
    range: Range,
    metric: &'a Metric,
    /// By position.
    values: Vec<Lanes>,
    rounded: Rounded,
}

/// What rows are rounded to under some scales.
#[derive(Clone, PartialEq)]
pub(super) struct Rounded {
    /// One a row.
    pub(super) scales: Lanes,
    /// By position.
    pub(super) codes: Vec<Lanes>,
    /// By block of positions.
    pub(super) integers: Vec<Lanes>,
    /// By position: value less what it was rounded to.
    errors: Vec<Lanes>,
    /// Of each row.
    cost: Lanes,
}

/// A block under one choice.
struct Block {
    cost: Lanes,
    integers: Lanes,
    codes: Vec<Lanes>,
    errors: Vec<Lanes>,
}

/// Who answers for an error in a block.
#[derive(Clone, Copy)]
enum Rule<'a> {
    /// Nobody: what errors cost.
    Alone(&'a [f32]),
    /// The columns after it. The block begins at this position of the triangle.
    Answering(&'a Triangle, usize),
}

impl<'a> Tile<'a> {
    pub(super) fn new(range: Range, metric: &'a Metric, values: Vec<Lanes>) -> Self {
        let zeros = vec![[0.0; LANES]; values.len()];
        let rounded = Rounded {
            scales: [1.0; LANES],
            codes: zeros.clone(),
            integers: vec![[1.0; LANES]; values.len().div_ceil(metric.block)],
            errors: zeros,
            cost: [f32::INFINITY; LANES],
        };
        Tile {
            range,
            metric,
            values,
            rounded,
        }
    }

    /// Finds scales, integers and codes. `spell` makes of a scale one that can be written.
    #[inline(always)]
    fn search(mut self, ratios: &Ratios, store_scale: impl Fn(f32) -> f32) -> Rounded {
        let mut largest = [0.0f32; LANES];
        self.values.iter().for_each(|values| {
            each(&mut largest, |lane, largest| {
                largest.max(values[lane].abs())
            })
        });
        let reach = self.range.codes[1] * f32::from(self.range.integers);
        for ratio in ratios.all.clone() {
            self.try_scales(
                largest.map(|largest| store_scale(largest / reach * STEP.powi(ratio))),
                false,
            );
        }
        if self.metric.answers.is_none() {
            for _ in 0..FITS {
                self.fit_scales(&store_scale);
                self.try_scales(self.rounded.scales, false);
            }
            self.settle();
            return self.rounded;
        }
        // In the measure of what follows.
        self.rounded.cost = self.metric.cost(&self.rounded.errors);
        let best = self.rounded.scales;
        for &ratio in ratios.near {
            self.try_scales(
                best.map(|scale| store_scale(scale * ratios.step.powi(ratio))),
                true,
            );
        }
        for sweep in 0..SWEEPS {
            if sweep > 0 {
                self.fit_scales(&store_scale);
            }
            self.choose_again();
        }
        self.rounded
    }

    /// Rounds every row under these scales, and keeps what costs less than what was kept before.
    #[inline(always)]
    fn try_scales(&mut self, scales: Lanes, answering: bool) {
        let mut new = Rounded {
            scales,
            cost: [0.0; LANES],
            ..self.rounded.clone()
        };
        for (index, first) in (0..self.values.len())
            .step_by(self.metric.block)
            .enumerate()
        {
            let end = (first + self.metric.block).min(self.values.len());
            let values = &self.values[first..end];
            let block = match &self.metric.answers {
                Some(triangle) if answering => {
                    let answer = |(k, value): (usize, &Lanes)| {
                        sum(*value, &new.errors[..first], &triangle.shares(k)[..first])
                    };
                    let targets: Vec<Lanes> = (first..).zip(values).map(answer).collect();
                    self.block(values, &targets, &scales, Rule::Answering(triangle, first))
                }
                _ => self.block(
                    values,
                    values,
                    &scales,
                    Rule::Alone(&self.metric.alone[first..end]),
                ),
            };
            each(&mut new.cost, |lane, cost| cost + block.cost[lane]);
            new.integers[index] = block.integers;
            new.codes[first..end].copy_from_slice(&block.codes);
            new.errors[first..end].copy_from_slice(&block.errors);
        }
        self.rounded.keep(&new);
    }

    /// The best choice for one block, of which `values` are rounded from `targets`.
    #[inline(always)]
    fn block(&self, values: &[Lanes], targets: &[Lanes], scales: &Lanes, rule: Rule) -> Block {
        if self.range.integers == 1 {
            return self.under(values, targets, [1.0; LANES], scales, rule);
        }
        // A value may lie half a step beyond the last code.
        let reach = self.range.codes[1] + 0.5;
        let mut first = [0.0f32; LANES];
        targets
            .iter()
            .for_each(|target| each(&mut first, |lane, first| first.max(target[lane].abs())));
        let top = f32::from(self.range.integers);
        each(&mut first, |lane, first| {
            (first / (scales[lane] * reach) * SMALLEST_TRIED)
                .ceil()
                .clamp(1.0, top)
        });
        let mut best = self.under(values, targets, first, scales, rule);
        for more in 1..TRIED {
            let integers = first.map(|first| (first + more as f32).min(top));
            let new = self.under(values, targets, integers, scales, rule);
            let better = lanes(|lane| new.cost[lane] < best.cost[lane]);
            take(better, &mut best.cost, &new.cost);
            take(better, &mut best.integers, &new.integers);
            best.codes
                .iter_mut()
                .zip(&new.codes)
                .for_each(|(old, new)| take(better, old, new));
            best.errors
                .iter_mut()
                .zip(&new.errors)
                .for_each(|(old, new)| take(better, old, new));
        }
        best
    }

    /// A block under these integers: its positions one after the other.
    #[inline(always)]
    fn under(
        &self,
        values: &[Lanes],
        targets: &[Lanes],
        integers: Lanes,
        scales: &Lanes,
        rule: Rule,
    ) -> Block {
        let [low, high] = self.range.codes;
        let steps: Lanes = std::array::from_fn(|lane| scales[lane] * integers[lane]);
        let inverse = steps.map(|step| 1.0 / step);
        let mut cost = [0.0; LANES];
        let mut codes = Vec::with_capacity(targets.len());
        let mut errors: Vec<Lanes> = Vec::with_capacity(targets.len());
        for (at, (value, target)) in values.iter().zip(targets).enumerate() {
            let (target, weight) = match rule {
                Rule::Alone(weights) => (*target, weights[at]),
                Rule::Answering(triangle, first) => {
                    let shares = &triangle.shares(first + at)[first..];
                    (sum(*target, &errors, shares), triangle.weights[first + at])
                }
            };
            let (mut code, mut error) = ([0.0; LANES], [0.0; LANES]);
            for lane in 0..LANES {
                code[lane] = nearest((target[lane] * inverse[lane]).clamp(low, high));
                let rounded = code[lane] * steps[lane];
                let left = target[lane] - rounded;
                cost[lane] += weight * left * left;
                error[lane] = value[lane] - rounded;
            }
            codes.push(code);
            errors.push(error);
        }
        Block {
            cost,
            integers,
            codes,
            errors,
        }
    }

    /// Chooses each block again, given all the others.
    #[inline(always)]
    fn choose_again(&mut self) {
        let mut slopes = self.metric.slopes(&self.rounded.errors);
        for (index, first) in (0..self.values.len())
            .step_by(self.metric.block)
            .enumerate()
        {
            let end = (first + self.metric.block).min(self.values.len());
            let Some(local) = self.metric.local.get(index) else {
                return;
            };
            let errors = &self.rounded.errors[first..end];
            // The others' part of the slope says where the block were best, if it had no codes to
            // keep to.
            let mut shift: Vec<Lanes> = (first..end)
                .map(|k| less(slopes[k], errors, &self.metric.moments_of(k)[first..end]))
                .collect();
            local.solve(&mut shift);
            let shifted = |(a, b): (&Lanes, &Lanes)| -> Lanes {
                std::array::from_fn(|lane| a[lane] + b[lane])
            };
            let targets: Vec<Lanes> = self.values[first..end]
                .iter()
                .zip(&shift)
                .map(shifted)
                .collect();
            let cost = local.cost(&errors.iter().zip(&shift).map(shifted).collect::<Vec<_>>());
            let new = self.block(
                &targets,
                &targets,
                &self.rounded.scales,
                Rule::Answering(local, 0),
            );
            let better = lanes(|lane| new.cost[lane] < cost[lane] * (1.0 - GAIN));
            if !better.contains(&true) {
                continue;
            }
            take(better, &mut self.rounded.integers[index], &new.integers);
            let mut changes = vec![];
            for (k, code) in (first..).zip(&new.codes) {
                let mut change = [0.0; LANES];
                for lane in (0..LANES).filter(|lane| better[*lane]) {
                    let rounded = code[lane] * (self.rounded.scales[lane] * new.integers[lane]);
                    let error = self.values[k][lane] - rounded;
                    change[lane] = error - self.rounded.errors[k][lane];
                    self.rounded.errors[k][lane] = error;
                    self.rounded.codes[k][lane] = code[lane];
                }
                if change != [0.0; LANES] {
                    changes.push((k, change));
                }
            }
            for (k, slope) in slopes.iter_mut().enumerate() {
                let moments = self.metric.moments_of(k);
                for (changed, change) in &changes {
                    each(slope, |lane, slope| {
                        slope + change[lane] * moments[*changed]
                    });
                }
            }
        }
    }

    /// Takes the nearest code of every value, under the scales and integers that were found.
    #[inline(always)]
    fn settle(&mut self) {
        let [low, high] = self.range.codes;
        for (k, codes) in self.rounded.codes.iter_mut().enumerate() {
            let integers = self.rounded.integers[k / self.metric.block];
            each(codes, |lane, _| {
                nearest(
                    (self.values[k][lane] / (self.rounded.scales[lane] * integers[lane]))
                        .clamp(low, high),
                )
            });
        }
    }

    /// Fits the scales to codes and integers, where that costs less.
    #[inline(always)]
    fn fit_scales(&mut self, store_scale: &impl Fn(f32) -> f32) {
        self.rounded.cost = self.metric.cost(&self.rounded.errors);
        let units = |k: usize| -> Lanes {
            std::array::from_fn(|lane| {
                self.rounded.codes[k][lane] * self.rounded.integers[k / self.metric.block][lane]
            })
        };
        let units: Vec<Lanes> = (0..self.values.len()).map(units).collect();
        let slopes = self.metric.slopes(&units);
        let (mut along, mut square) = ([0.0; LANES], [0.0; LANES]);
        for (k, slope) in slopes.iter().enumerate() {
            each(&mut along, |lane, along| {
                along + slope[lane] * self.values[k][lane]
            });
            each(&mut square, |lane, square| {
                square + slope[lane] * units[k][lane]
            });
        }
        let mut new = self.rounded.clone();
        each(&mut new.scales, |lane, scale| {
            let fitted = along[lane] / square[lane];
            if fitted.is_finite() && fitted > 0.0 {
                store_scale(fitted)
            } else {
                scale
            }
        });
        for (k, error) in new.errors.iter_mut().enumerate() {
            each(error, |lane, _| {
                self.values[k][lane] - units[k][lane] * new.scales[lane]
            });
        }
        new.cost = self.metric.cost(&new.errors);
        self.rounded.keep(&new);
    }
}

impl Rounded {
    /// Of each row, keeps what costs less.
    #[inline(always)]
    fn keep(&mut self, new: &Rounded) {
        let better = lanes(|lane| new.cost[lane] < self.cost[lane]);
        take(better, &mut self.cost, &new.cost);
        take(better, &mut self.scales, &new.scales);
        self.integers
            .iter_mut()
            .zip(&new.integers)
            .for_each(|(old, new)| take(better, old, new));
        self.codes
            .iter_mut()
            .zip(&new.codes)
            .for_each(|(old, new)| take(better, old, new));
        self.errors
            .iter_mut()
            .zip(&new.errors)
            .for_each(|(old, new)| take(better, old, new));
    }
}

/// `of` each lane.
#[inline(always)]
fn lanes(of: impl Fn(usize) -> bool) -> [bool; LANES] {
    std::array::from_fn(of)
}

/// Changes each lane.
#[inline(always)]
fn each(all: &mut Lanes, change: impl Fn(usize, f32) -> f32) {
    (0..LANES).for_each(|lane| all[lane] = change(lane, all[lane]));
}

/// Takes the lanes that are better.
#[inline(always)]
fn take(better: [bool; LANES], old: &mut Lanes, new: &Lanes) {
    each(old, |lane, old| if better[lane] { new[lane] } else { old });
}

/// `start + errors * shares`.
#[inline(always)]
pub(super) fn sum(mut start: Lanes, errors: &[Lanes], shares: &[f32]) -> Lanes {
    for (error, share) in errors.iter().zip(shares) {
        each(&mut start, |lane, start| start + error[lane] * share);
    }
    start
}

/// `start - errors * shares`.
#[inline(always)]
pub(super) fn less(mut start: Lanes, errors: &[Lanes], shares: &[f32]) -> Lanes {
    for (error, share) in errors.iter().zip(shares) {
        each(&mut start, |lane, start| start - error[lane] * share);
    }
    start
}

/// To the nearest whole number, ties to even, for magnitudes below 2^22: a sum with 1.5 * 2^23 has
/// no bits for a fraction.
#[inline(always)]
fn nearest(value: f32) -> f32 {
    const WHOLE: f32 = 12_582_912.0;
    value + WHOLE - WHOLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::quant::kernels::run_wide;

    #[test]
    fn wider_registers_change_no_bit() {
        let mut state = 1u32;
        let mut number = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let columns = 64;
        let inputs: Vec<f32> = (0..columns * 80).map(|_| number()).collect();
        let moment = |a: usize, b: usize| inputs.chunks(columns).map(|x| x[a] * x[b]).sum::<f32>();
        let moments: Vec<f32> = (0..columns * columns)
            .map(|i| moment(i / columns, i % columns))
            .collect();
        let values: Vec<Lanes> = (0..columns)
            .map(|_| [0.0; LANES].map(|_| number()))
            .collect();
        for block in [Some(16), None] {
            let metric = Metric::full(&moments, columns, block).unwrap();
            let range = Range {
                codes: [-8.0, 7.0],
                integers: if block.is_some() { 16 } else { 1 },
            };
            let tile = || Tile::new(range, &metric, values.clone());
            let ratios = Ratios {
                all: -6..=1,
                near: &[0, 1],
                step: 1.02,
            };
            let store_scale = |scale| scale;
            let search = Search {
                tile: tile(),
                ratios: &ratios,
                store_scale,
            };
            assert!(tile().search(&ratios, store_scale) == run_wide(search));
        }
    }
}
