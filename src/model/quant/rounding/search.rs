//! The search for codes and scales. It rounds several rows at a time, one per lane. Each lane is
//! computed by the same operations in the same order, whatever is in the other lanes.
//!
//! 1. Scales are tried without feedback, which costs one pass over the row each. With a diagonal
//!    metric the best of them is then fitted to its codes, and the search is done.
//! 2. The row is rounded column by column under the best scale with feedback: each column
//!    compensates the errors of the columns before it.
//! 3. Blocks are chosen again, one after the other, with all other blocks fixed, where that costs
//!    less. The scale is fitted to the codes between these sweeps.

use std::ops::Range;

use super::lanes::{LANES, Lanes, add_products, subtract_products, update};
use super::metric::{Factors, Metric};
use crate::model::quant::kernels::Loop;

/// Number of consecutive integers that are tried for a block.
const INTEGERS_TRIED: usize = 12;

/// The smallest of them, as a share of the smallest integer that clips no value of the block.
/// Integers above the latter are tried too: if the source is on a grid itself, of which the block
/// uses only a part, the best integer is the one whose step is that of the grid.
const SMALLEST_TRIED: f32 = 0.6;

/// Ratio of the scales that are tried, down and up from the smallest that clips nothing.
pub(super) const STEP: f32 = 1.04;

/// How often all blocks are chosen again.
const SWEEPS: usize = 2;

/// How often a scale is fitted and everything rounded again without feedback.
const FITS: usize = 2;

/// Minimum relative gain of a new choice; smaller gains are rounding errors of f32.
const MIN_GAIN: f32 = 1e-4;

/// The range of codes, and of the integers that scale them.
#[derive(Clone, Copy)]
pub(super) struct CodeRange {
    /// Smallest and largest code.
    pub(super) codes: [f32; 2],
    /// Whether each block lacks one of the two: the smallest if the largest magnitude of its
    /// targets is that of a positive number, otherwise the largest.
    pub(super) shifts: bool,
    /// Largest integer of a block; 1 if blocks have none.
    pub(super) integers: u8,
}

impl CodeRange {
    /// The smallest and the largest code of a block. `is_positive`: it may have the largest of all
    /// codes.
    #[inline(always)]
    pub(super) fn of_block(self, is_positive: bool) -> [f32; 2] {
        let [low, high] = self.codes;
        match (self.shifts, is_positive) {
            (false, _) => [low, high],
            (true, true) => [low + 1.0, high],
            (true, false) => [low, high - 1.0],
        }
    }
}

/// Which scales are tried.
pub(super) struct Ratios {
    /// Without feedback, as powers of [`STEP`].
    pub(super) all: std::ops::RangeInclusive<i32>,
    /// With feedback, relative to the best of those, as powers of `step`.
    pub(super) near: &'static [i32],
    /// May be finer than [`STEP`].
    pub(super) step: f32,
}

/// A search to be run. `store_scale` rounds a scale to one that can be stored.
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

/// Some rows, and what they are rounded to.
pub(super) struct Tile<'a> {
    range: CodeRange,
    metric: &'a Metric,
    /// By position.
    values: Vec<Lanes>,
    rounded: Rounded,
}

/// Rounded rows.
#[derive(Clone, PartialEq)]
pub(super) struct Rounded {
    /// One per row.
    pub(super) scales: Lanes,
    /// By position.
    pub(super) codes: Vec<Lanes>,
    /// By block of positions.
    pub(super) integers: Vec<Lanes>,
    /// By position: the value minus the rounded value.
    errors: Vec<Lanes>,
    /// The cost of the errors, one per row.
    pub(super) cost: Lanes,
    /// The cost of zeros in place of all values, one per row.
    pub(super) signal: Lanes,
}

/// A rounded block of positions.
struct Block {
    cost: Lanes,
    integers: Lanes,
    codes: Vec<Lanes>,
    errors: Vec<Lanes>,
}

/// How errors in a block are weighted.
#[derive(Clone, Copy)]
enum Feedback<'a> {
    /// No column compensates the error of another. The weights of the block's positions.
    None(&'a [f32]),
    /// Later columns compensate errors. The block begins at this position of the factors.
    From(&'a Factors, usize),
}

impl<'a> Tile<'a> {
    pub(super) fn new(range: CodeRange, metric: &'a Metric, values: Vec<Lanes>) -> Self {
        let zeros = vec![[0.0; LANES]; values.len()];
        let rounded = Rounded {
            scales: [1.0; LANES],
            codes: zeros.clone(),
            integers: vec![[1.0; LANES]; values.len().div_ceil(metric.block)],
            errors: zeros,
            cost: [f32::INFINITY; LANES],
            signal: [0.0; LANES],
        };
        Tile {
            range,
            metric,
            values,
            rounded,
        }
    }

    /// Finds scales, integers and codes.
    #[inline(always)]
    fn search(mut self, ratios: &Ratios, store_scale: impl Fn(f32) -> f32) -> Rounded {
        let largest = largest_magnitudes(&self.values);
        let reach = self.range.codes[1] * f32::from(self.range.integers);
        for ratio in ratios.all.clone() {
            let factor = STEP.powi(ratio);
            let scales = largest.map(|largest| store_scale(largest / reach * factor));
            self.try_scales(scales, false);
        }
        if self.metric.factors.is_none() {
            for _ in 0..FITS {
                self.fit_scales(&store_scale);
                self.try_scales(self.rounded.scales, false);
            }
            self.round_to_nearest();
            return self.measured();
        }
        // From here on, costs include feedback.
        self.rounded.cost = self.metric.cost(&self.rounded.errors);
        let best = self.rounded.scales;
        for &ratio in ratios.near {
            let factor = ratios.step.powi(ratio);
            let scales = best.map(|scale| store_scale(scale * factor));
            self.try_scales(scales, true);
        }
        for sweep in 0..SWEEPS {
            if sweep > 0 {
                self.fit_scales(&store_scale);
            }
            self.refine_blocks();
        }
        self.measured()
    }

    /// The rounded rows with their costs.
    #[inline(always)]
    fn measured(mut self) -> Rounded {
        self.rounded.cost = self.metric.cost(&self.rounded.errors);
        self.rounded.signal = self.metric.cost(&self.values);
        self.rounded
    }

    /// The positions of the block that begins at `first`.
    #[inline(always)]
    fn block_at(&self, first: usize) -> Range<usize> {
        first..(first + self.metric.block).min(self.values.len())
    }

    /// Rounds every row under `scales`, and keeps the result of those that now cost less.
    #[inline(always)]
    fn try_scales(&mut self, scales: Lanes, with_feedback: bool) {
        let mut new = Rounded {
            scales,
            cost: [0.0; LANES],
            ..self.rounded.clone()
        };
        let starts = (0..self.values.len()).step_by(self.metric.block);
        for (index, first) in starts.enumerate() {
            let range = self.block_at(first);
            let values = &self.values[range.clone()];
            let block = match &self.metric.factors {
                Some(factors) if with_feedback => {
                    let before = &new.errors[..first];
                    let mut targets = Vec::with_capacity(values.len());
                    for (k, value) in (first..).zip(values) {
                        let m = &factors.m_column(k)[..first];
                        targets.push(add_products(*value, before, m));
                    }
                    self.round_block(values, &targets, &scales, Feedback::From(factors, first))
                }
                _ => {
                    let weights = Feedback::None(&self.metric.weights[range.clone()]);
                    self.round_block(values, values, &scales, weights)
                }
            };
            update(&mut new.cost, |lane, cost| cost + block.cost[lane]);
            new.integers[index] = block.integers;
            new.codes[range.clone()].copy_from_slice(&block.codes);
            new.errors[range].copy_from_slice(&block.errors);
        }
        self.rounded.keep_better(&new);
    }

    /// Rounds `targets`, one block, under the best integers. Errors are relative to `values`.
    #[inline(always)]
    fn round_block(
        &self,
        values: &[Lanes],
        targets: &[Lanes],
        scales: &Lanes,
        feedback: Feedback,
    ) -> Block {
        let bounds = self.bounds(targets);
        if self.range.integers == 1 {
            return round_under([1.0; LANES], bounds, values, targets, scales, feedback);
        }
        // A value may be half a step beyond the last code.
        let reach = self.range.codes[1] + 0.5;
        let top = f32::from(self.range.integers);
        let mut first = largest_magnitudes(targets);
        update(&mut first, |lane, first| {
            let smallest = first / (scales[lane] * reach);
            (smallest * SMALLEST_TRIED).ceil().clamp(1.0, top)
        });
        let mut best = round_under(first, bounds, values, targets, scales, feedback);
        for more in 1..INTEGERS_TRIED {
            let integers = first.map(|first| (first + more as f32).min(top));
            let new = round_under(integers, bounds, values, targets, scales, feedback);
            let better = compare(|lane| new.cost[lane] < best.cost[lane]);
            select(better, &mut best.cost, &new.cost);
            select(better, &mut best.integers, &new.integers);
            select_all(better, &mut best.codes, &new.codes);
            select_all(better, &mut best.errors, &new.errors);
        }
        best
    }

    /// The smallest and the largest code of a block with these `targets`.
    #[inline(always)]
    fn bounds(&self, targets: &[Lanes]) -> [Lanes; 2] {
        let mut is_positive = [false; LANES];
        if self.range.shifts {
            is_positive = largest_is_positive(targets);
        }
        let mut bounds = [[0.0; LANES]; 2];
        for lane in 0..LANES {
            let [low, high] = self.range.of_block(is_positive[lane]);
            (bounds[0][lane], bounds[1][lane]) = (low, high);
        }
        bounds
    }

    /// Chooses each block again, with all other blocks fixed.
    #[inline(always)]
    fn refine_blocks(&mut self) {
        let mut gradient = self.metric.multiply(&self.rounded.errors);
        let starts = (0..self.values.len()).step_by(self.metric.block);
        for (index, first) in starts.enumerate() {
            let Some(factors) = self.metric.block_factors.get(index) else {
                return;
            };
            let range = self.block_at(first);
            let errors = &self.rounded.errors[range.clone()];
            // The other blocks' part of the gradient yields the optimum of this block without
            // rounding.
            let mut shift: Vec<Lanes> = Vec::with_capacity(errors.len());
            for k in range.clone() {
                let moments = &self.metric.moments_of(k)[range.clone()];
                shift.push(subtract_products(gradient[k], errors, moments));
            }
            factors.solve(&mut shift);
            let targets = sums(&self.values[range.clone()], &shift);
            let cost = factors.cost(&sums(errors, &shift));
            let scales = self.rounded.scales;
            let new = self.round_block(&targets, &targets, &scales, Feedback::From(factors, 0));
            let better = compare(|lane| new.cost[lane] < cost[lane] * (1.0 - MIN_GAIN));
            if !better.contains(&true) {
                continue;
            }
            select(better, &mut self.rounded.integers[index], &new.integers);
            let mut changes = vec![];
            for (k, code) in (first..).zip(&new.codes) {
                let mut change = [0.0; LANES];
                for lane in 0..LANES {
                    if !better[lane] {
                        continue;
                    }
                    let rounded = code[lane] * (scales[lane] * new.integers[lane]);
                    let error = self.values[k][lane] - rounded;
                    change[lane] = error - self.rounded.errors[k][lane];
                    self.rounded.errors[k][lane] = error;
                    self.rounded.codes[k][lane] = code[lane];
                }
                if change != [0.0; LANES] {
                    changes.push((k, change));
                }
            }
            for (k, gradient) in gradient.iter_mut().enumerate() {
                let moments = self.metric.moments_of(k);
                for (changed, change) in &changes {
                    let moment = moments[*changed];
                    update(gradient, |lane, gradient| gradient + change[lane] * moment);
                }
            }
        }
    }

    /// Replaces every code by the nearest one, under the scales and integers that were found.
    #[inline(always)]
    fn round_to_nearest(&mut self) {
        let starts = (0..self.values.len()).step_by(self.metric.block);
        for (index, first) in starts.enumerate() {
            let range = self.block_at(first);
            let [low, high] = self.bounds(&self.values[range.clone()]);
            let integers = self.rounded.integers[index];
            for k in range {
                update(&mut self.rounded.codes[k], |lane, _| {
                    let step = self.rounded.scales[lane] * integers[lane];
                    nearest(clamp(self.values[k][lane] / step, low[lane], high[lane]))
                });
            }
        }
    }

    /// Fits the scales to codes and integers, where that costs less.
    #[inline(always)]
    fn fit_scales(&mut self, store_scale: &impl Fn(f32) -> f32) {
        self.rounded.cost = self.metric.cost(&self.rounded.errors);
        // The rounded values under scales of 1.
        let mut units: Vec<Lanes> = Vec::with_capacity(self.values.len());
        for (k, codes) in self.rounded.codes.iter().enumerate() {
            let integers = &self.rounded.integers[k / self.metric.block];
            units.push(std::array::from_fn(|lane| codes[lane] * integers[lane]));
        }
        let products = self.metric.multiply(&units);
        let (mut along, mut square) = ([0.0; LANES], [0.0; LANES]);
        for (k, product) in products.iter().enumerate() {
            let (values, units) = (&self.values[k], &units[k]);
            update(&mut along, |lane, sum| sum + product[lane] * values[lane]);
            update(&mut square, |lane, sum| sum + product[lane] * units[lane]);
        }
        let mut new = self.rounded.clone();
        update(&mut new.scales, |lane, scale| {
            let fitted = along[lane] / square[lane];
            if fitted.is_finite() && fitted > 0.0 {
                store_scale(fitted)
            } else {
                scale
            }
        });
        for (k, error) in new.errors.iter_mut().enumerate() {
            let (values, units) = (&self.values[k], &units[k]);
            update(error, |lane, _| {
                values[lane] - units[lane] * new.scales[lane]
            });
        }
        new.cost = self.metric.cost(&new.errors);
        self.rounded.keep_better(&new);
    }
}

impl Rounded {
    /// Replaces the rows that cost less in `new`.
    #[inline(always)]
    fn keep_better(&mut self, new: &Rounded) {
        let better = compare(|lane| new.cost[lane] < self.cost[lane]);
        select(better, &mut self.cost, &new.cost);
        select(better, &mut self.scales, &new.scales);
        select_all(better, &mut self.integers, &new.integers);
        select_all(better, &mut self.codes, &new.codes);
        select_all(better, &mut self.errors, &new.errors);
    }
}

/// Rounds `targets`, one block, under `integers` to codes from `low` to `high`: its positions one
/// after the other.
#[inline(always)]
fn round_under(
    integers: Lanes,
    [low, high]: [Lanes; 2],
    values: &[Lanes],
    targets: &[Lanes],
    scales: &Lanes,
    feedback: Feedback,
) -> Block {
    let steps: Lanes = std::array::from_fn(|lane| scales[lane] * integers[lane]);
    let inverse = steps.map(|step| 1.0 / step);
    let mut cost = [0.0; LANES];
    let mut codes = Vec::with_capacity(targets.len());
    let mut errors: Vec<Lanes> = Vec::with_capacity(targets.len());
    for (at, (value, target)) in values.iter().zip(targets).enumerate() {
        let (target, weight) = match feedback {
            Feedback::None(weights) => (*target, weights[at]),
            Feedback::From(factors, first) => {
                let m = &factors.m_column(first + at)[first..];
                (add_products(*target, &errors, m), factors.d[first + at])
            }
        };
        let (mut code, mut error) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            code[lane] = nearest(clamp(target[lane] * inverse[lane], low[lane], high[lane]));
            let rounded = code[lane] * steps[lane];
            let rest = target[lane] - rounded;
            cost[lane] += weight * rest * rest;
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

/// The largest magnitude of each lane.
#[inline(always)]
fn largest_magnitudes(values: &[Lanes]) -> Lanes {
    let mut largest = [0.0f32; LANES];
    for values in values {
        update(&mut largest, |lane, largest| {
            largest.max(values[lane].abs())
        });
    }
    largest
}

/// Whether the largest magnitude of each lane is that of a positive number.
#[inline(always)]
fn largest_is_positive(values: &[Lanes]) -> [bool; LANES] {
    let (mut smallest, mut largest) = ([0.0f32; LANES], [0.0f32; LANES]);
    for values in values {
        update(&mut smallest, |lane, smallest| smallest.min(values[lane]));
        update(&mut largest, |lane, largest| largest.max(values[lane]));
    }
    compare(|lane| largest[lane] > -smallest[lane])
}

/// `value` within these bounds. `f32::clamp` compares the bounds too, which is slow in a loop.
#[inline(always)]
fn clamp(mut value: f32, low: f32, high: f32) -> f32 {
    if value < low {
        value = low;
    }
    if value > high {
        value = high;
    }
    value
}

/// A condition for each lane.
#[inline(always)]
fn compare(condition: impl Fn(usize) -> bool) -> [bool; LANES] {
    std::array::from_fn(condition)
}

/// Replaces the lanes that are better in `new`.
#[inline(always)]
fn select(better: [bool; LANES], old: &mut Lanes, new: &Lanes) {
    update(old, |lane, old| if better[lane] { new[lane] } else { old });
}

/// The same for all positions.
#[inline(always)]
fn select_all(better: [bool; LANES], old: &mut [Lanes], new: &[Lanes]) {
    for (old, new) in old.iter_mut().zip(new) {
        select(better, old, new);
    }
}

/// `a + b`, element by element.
#[inline(always)]
fn sums(a: &[Lanes], b: &[Lanes]) -> Vec<Lanes> {
    let mut sums = a.to_vec();
    for (sum, b) in sums.iter_mut().zip(b) {
        update(sum, |lane, a| a + b[lane]);
    }
    sums
}

/// The nearest integer, ties to even, for magnitudes below 2^22: the sum with 1.5 * 2^23 has no
/// bits for a fraction.
#[inline(always)]
fn nearest(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    value + SHIFT - SHIFT
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
        let mut moments = vec![0.0; columns * columns];
        for input in inputs.chunks(columns) {
            for (i, moment) in moments.iter_mut().enumerate() {
                *moment += input[i / columns] * input[i % columns];
            }
        }
        let mut values = vec![[0.0; LANES]; columns];
        values.as_flattened_mut().fill_with(&mut number);
        for (block, largest) in [(Some(16), 7.0), (Some(16), 8.0), (None, 7.0)] {
            let metric = Metric::full(&moments, columns, block).unwrap();
            let range = CodeRange {
                codes: [-8.0, largest],
                shifts: largest == 8.0,
                integers: if block.is_some() { 16 } else { 1 },
            };
            let ratios = Ratios {
                all: -6..=1,
                near: &[0, 1],
                step: 1.02,
            };
            let search = Search {
                tile: Tile::new(range, &metric, values.clone()),
                ratios: &ratios,
                store_scale: std::convert::identity,
            };
            let tile = Tile::new(range, &metric, values.clone());
            let narrow = tile.search(&ratios, std::convert::identity);
            assert!(narrow == run_wide(search));
        }
    }
}
