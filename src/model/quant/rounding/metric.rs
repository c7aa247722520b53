//! What an error of a weight costs: the mean square error of the layer's output, as second moments
//! of its input tell it.
//!
//! With `e = w - q` for a row and `H` the second moments, the cost is `e H e^T`. The factorization
//! `H = (I + M) D (I + M)^T`, with M strictly upper triangular, makes it a sum over columns:
//! `D_k (e_k + sum_{i<k} e_i M_ik)^2`. Column k is best rounded from `w_k + sum_{i<k} e_i M_ik`.
//! That is the error feedback of GPTQ (arXiv 2210.17323), in the form of LDLQ (arXiv 2307.13304),
//! which needs no inverse and gives the cost of each choice when it is made.

use rayon::prelude::*;

use super::search::{LANES, Lanes, less, sum};
use crate::base::{Code, Problem, Result};

/// Share of the mean of H's diagonal that is added to the diagonal: moments of a few thousand
/// tokens are not trusted blindly.
const DAMPING: f64 = 0.05;

/// Columns that are factored at a time.
const PANEL: usize = 64;

/// Positions that are chosen together where no block of a format asks for another number.
const CHUNK: usize = 32;

/// What an error of a row costs. Columns are taken in an order of their own: position p is column
/// `order[p]`.
pub struct Metric {
    /// Columns by position, in whole blocks.
    pub(super) order: Vec<usize>,
    /// Positions that are chosen together.
    pub(super) block: usize,
    /// By position: what an error costs that no other column answers for.
    pub(super) alone: Vec<f32>,
    /// How columns answer for errors of those before them, if they do.
    pub(super) answers: Option<Triangle>,
    /// The same within each block, when all others stand.
    pub(super) local: Vec<Triangle>,
    /// H by position, damped.
    moments: Vec<f32>,
}

/// D and M of some columns.
pub(super) struct Triangle {
    /// D: what an error costs that the columns after it answer for.
    pub(super) weights: Vec<f32>,
    /// M by columns.
    shares: Vec<f32>,
}

impl Metric {
    /// Every error costs its square.
    pub fn plain(columns: usize, block: Option<u32>) -> Self {
        Metric::weighted(vec![1.0; columns], block)
    }

    /// From the mean squares of the inputs alone. Refused: what is no mean square.
    pub fn diagonal(mean_squares: &[f32], block: Option<u32>) -> Result<Self> {
        if mean_squares
            .iter()
            .any(|square| !square.is_finite() || *square < 0.0)
        {
            return Err(bad("a mean square of an input is negative, or no number"));
        }
        let damping = DAMPING
            * mean(
                mean_squares.iter().map(|square| f64::from(*square)),
                mean_squares.len(),
            );
        if damping == 0.0 {
            return Ok(Metric::plain(mean_squares.len(), block));
        }
        let damped = mean_squares
            .iter()
            .map(|square| (f64::from(*square) + damping) as f32)
            .collect();
        Ok(Metric::weighted(damped, block))
    }

    fn weighted(alone: Vec<f32>, block: Option<u32>) -> Self {
        let order = (0..alone.len()).collect();
        Metric {
            order,
            block: positions(block),
            alone,
            answers: None,
            local: vec![],
            moments: vec![],
        }
    }

    /// From all second moments of the inputs, row-major. Columns of a `block` stay together; those
    /// with the larger moments go first, while others can still answer for them. Refused: what
    /// are no second moments.
    pub fn full(given: &[f32], columns: usize, block: Option<u32>) -> Result<Self> {
        if Some(given.len()) != columns.checked_mul(columns) || columns == 0 {
            return Err(bad(&format!(
                "{} numbers are no moments of {columns} inputs",
                given.len()
            )));
        }
        if given.iter().any(|moment| !moment.is_finite()) {
            return Err(bad("a moment is no number"));
        }
        let square = |column: usize| given[column * (columns + 1)];
        let damping = DAMPING
            * mean(
                (0..columns).map(|column| f64::from(square(column))),
                columns,
            );
        if damping <= 0.0 {
            return Ok(Metric::plain(columns, block));
        }
        let order = order(
            columns,
            block.map_or(columns, |block| block.max(1) as usize),
            square,
        );
        let mut moments = vec![0.0; given.len()];
        moments
            .par_chunks_mut(columns)
            .zip(&order)
            .enumerate()
            .for_each(|(position, (out, row))| {
                let row = &given[row * columns..][..columns];
                out.iter_mut()
                    .zip(&order)
                    .for_each(|(out, column)| *out = row[*column]);
                out[position] = (f64::from(out[position]) + damping) as f32;
            });
        let block = positions(block);
        let of = |first: usize, count: usize| {
            Triangle::of(count, |row, column| {
                moments[(first + row) * columns + first + column]
            })
        };
        let blocks = (0..columns).step_by(block);
        let local = blocks
            .map(|first| of(first, block.min(columns - first)))
            .collect::<Result<_>>()?;
        let alone = (0..columns)
            .map(|position| moments[position * (columns + 1)])
            .collect();
        Ok(Metric {
            answers: Some(of(0, columns)?),
            order,
            block,
            alone,
            local,
            moments,
        })
    }

    /// Number of columns.
    pub(super) fn columns(&self) -> usize {
        self.order.len()
    }

    /// H of position `k` with each position.
    #[inline(always)]
    pub(super) fn moments_of(&self, k: usize) -> &[f32] {
        &self.moments[k * self.columns()..][..self.columns()]
    }

    /// H times `errors`.
    #[inline(always)]
    pub(super) fn slopes(&self, errors: &[Lanes]) -> Vec<Lanes> {
        if self.answers.is_none() {
            return errors
                .iter()
                .zip(&self.alone)
                .map(|(error, weight)| error.map(|error| error * weight))
                .collect();
        }
        (0..errors.len())
            .map(|k| sum([0.0; LANES], errors, self.moments_of(k)))
            .collect()
    }

    /// What `errors` cost.
    #[inline(always)]
    pub(super) fn cost(&self, errors: &[Lanes]) -> Lanes {
        if let Some(triangle) = &self.answers {
            return triangle.cost(errors);
        }
        let mut cost = [0.0; LANES];
        for (error, weight) in errors.iter().zip(&self.alone) {
            (0..LANES).for_each(|lane| cost[lane] += weight * error[lane] * error[lane]);
        }
        cost
    }
}

fn positions(block: Option<u32>) -> usize {
    block.map_or(CHUNK, |block| block.max(1) as usize)
}

impl Triangle {
    /// Of a symmetric matrix, which must be positive definite.
    fn of(size: usize, at: impl Fn(usize, usize) -> f32 + Sync) -> Result<Self> {
        // Backwards, so that factoring goes from the last position to the first.
        let mut factor = vec![0.0f64; size * size];
        factor
            .par_chunks_mut(size)
            .enumerate()
            .for_each(|(row, out)| {
                let lower = out.iter_mut().enumerate().take(row + 1);
                lower.for_each(|(column, out)| {
                    *out = f64::from(at(size - 1 - row, size - 1 - column))
                });
            });
        cholesky(&mut factor, size)?;
        let pivot = |k: usize| factor[(size - 1 - k) * (size + 1)];
        let mut shares = Vec::with_capacity(size * (size - 1) / 2);
        for k in 0..size {
            shares.extend(
                (0..k).map(|i| (factor[(size - 1 - i) * size + size - 1 - k] / pivot(k)) as f32),
            );
        }
        Ok(Triangle {
            weights: (0..size).map(|k| pivot(k).powi(2) as f32).collect(),
            shares,
        })
    }

    /// How much column `k` answers for the error of each column before it: `M_ik`.
    #[inline(always)]
    pub(super) fn shares(&self, k: usize) -> &[f32] {
        &self.shares[k * (k.max(1) - 1) / 2..][..k]
    }

    /// What `errors` cost.
    #[inline(always)]
    pub(super) fn cost(&self, errors: &[Lanes]) -> Lanes {
        let mut cost = [0.0; LANES];
        for (k, (error, weight)) in errors.iter().zip(&self.weights).enumerate() {
            let left = sum(*error, &errors[..k], self.shares(k));
            (0..LANES).for_each(|lane| cost[lane] += weight * left[lane] * left[lane]);
        }
        cost
    }

    /// The matrix's inverse times `right`, in its place.
    #[inline(always)]
    pub(super) fn solve(&self, right: &mut [Lanes]) {
        for k in (0..right.len()).rev() {
            let (before, from) = right.split_at_mut(k);
            for (right, share) in before.iter_mut().zip(self.shares(k)) {
                (0..LANES).for_each(|lane| right[lane] -= from[0][lane] * share);
            }
        }
        for k in 0..right.len() {
            let scaled = right[k].map(|right| right / self.weights[k]);
            right[k] = less(scaled, &right[..k], self.shares(k));
        }
    }
}

fn bad(what: &str) -> Problem {
    Problem::new(Code::WeightsMoments, what.to_string())
        .help("run the `calibrate` stage again, over another text")
}

fn mean(values: impl Iterator<Item = f64>, count: usize) -> f64 {
    values.sum::<f64>() / count.max(1) as f64
}

/// Blocks with the largest moments first, and so the columns within; of equals the first.
fn order(columns: usize, block: usize, square: impl Fn(usize) -> f32) -> Vec<usize> {
    let descending = |a: f64, b: f64| b.total_cmp(&a);
    let mut blocks: Vec<(f64, Vec<usize>)> = (0..columns)
        .step_by(block)
        .map(|first| {
            let mut inside: Vec<usize> = (first..(first + block).min(columns)).collect();
            inside.sort_by(|a, b| descending(square(*a).into(), square(*b).into()));
            (
                inside.iter().map(|column| f64::from(square(*column))).sum(),
                inside,
            )
        })
        .collect();
    blocks.sort_by(|(a, _), (b, _)| descending(*a, *b));
    blocks.into_iter().flat_map(|(_, inside)| inside).collect()
}

/// The lower triangle of `matrix` becomes its Cholesky factor: a panel of columns at a time, then
/// all rows below it on all threads. Each element is summed by one thread in one order.
fn cholesky(matrix: &mut [f64], size: usize) -> Result<()> {
    for first in (0..size).step_by(PANEL) {
        let end = (first + PANEL).min(size);
        let (above, below) = matrix.split_at_mut(end * size);
        for row in first..end {
            let (done, rest) = above.split_at_mut(row * size);
            let rest = &mut rest[..size];
            for column in first..row {
                let factor = &done[column * size..][..=column];
                rest[column] = (rest[column] - dot(&rest[..column], factor)) / factor[column];
            }
            let pivot = rest[row] - dot(&rest[..row], &rest[..row]);
            if pivot.is_nan() || pivot <= 0.0 {
                return Err(bad("the moments of these inputs are no second moments: \
                                they are not positive definite"));
            }
            rest[row] = pivot.sqrt();
        }
        below.par_chunks_mut(size).for_each(|rest| {
            for column in first..end {
                let factor = &above[column * size..][..=column];
                rest[column] = (rest[column] - dot(&rest[..column], factor)) / factor[column];
            }
        });
    }
    Ok(())
}

/// The sum of products, of as many as the shorter has.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let length = a.len().min(b.len());
    let ((a, a_rest), (b, b_rest)) = (
        a[..length].as_chunks::<LANES>(),
        b[..length].as_chunks::<LANES>(),
    );
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factors_multiply_to_the_moments() {
        // Of inputs a, a + b, b with mean squares 1 of a, 4 of b, and two blocks: [0, 1] and [2].
        let moments = [1.0, 1.0, 0.0, 1.0, 5.0, 4.0, 0.0, 4.0, 4.0f32];
        let metric = Metric::full(&moments, 3, Some(2)).unwrap();
        assert_eq!(
            metric.order,
            [1, 0, 2],
            "large moments first, blocks together"
        );
        let damping = DAMPING as f32 * 10.0 / 3.0;
        let triangle = metric.answers.as_ref().unwrap();
        let m = |i: usize, k: usize| {
            if i == k {
                1.0
            } else {
                triangle.shares(k).get(i).copied().unwrap_or(0.0)
            }
        };
        for a in 0..3 {
            for b in 0..3 {
                let product: f32 = (0..3)
                    .map(|k| m(a, k) * m(b, k) * triangle.weights[k])
                    .sum();
                let expected = moments[metric.order[a] * 3 + metric.order[b]]
                    + if a == b { damping } else { 0.0 };
                assert!(
                    (product - expected).abs() < 1e-5,
                    "{a} {b}: {product} {expected}"
                );
            }
        }
    }

    #[test]
    fn what_are_no_moments_is_refused() {
        let code = |moments: &[f32], columns| {
            Metric::full(moments, columns, None)
                .map(drop)
                .unwrap_err()
                .message
        };
        assert_eq!(code(&[1.0; 3], 2), "3 numbers are no moments of 2 inputs");
        assert_eq!(code(&[1.0, f32::NAN, 0.0, 1.0], 2), "a moment is no number");
        assert!(code(&[1.0, 9.0, 9.0, 1.0], 2).contains("not positive definite"));
        assert!(
            Metric::full(&[0.0; 4], 2, None).is_ok_and(|metric| metric.answers.is_none()),
            "an input that is always 0"
        );
        assert!(Metric::diagonal(&[1.0, -1.0], None).is_err());
    }
}
