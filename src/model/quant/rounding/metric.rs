//! The cost of rounding errors: the mean square error of a layer's output, computed from the second
//! moments of the layer's input.
//!
//! For a row of errors `e = w - q` and second moments `H` the cost is `e H e^T`. The factorization
//! `H = (I + M) D (I + M)^T`, with M strictly upper triangular, makes it a sum over columns:
//! `D_k (e_k + sum_{i<k} e_i M_ik)^2`. So column k is best rounded from `w_k + sum_{i<k} e_i M_ik`.
//! This is the error feedback of GPTQ (arXiv 2210.17323) in the form of LDLQ (arXiv 2307.13304),
//! which needs no inverse and yields the cost of each choice as it is made.

use std::ops::Range;

use rayon::prelude::*;

use super::lanes::{LANES, Lanes, add_products, subtract_products};
use crate::base::{Code, Problem, Result};

/// Share of the mean of H's diagonal that is added to the diagonal, because moments of a few
/// thousand tokens are an estimate.
const DAMPING: f64 = 0.05;

/// Columns that are factored together.
const PANEL: usize = 64;

/// Positions that are rounded together if the format has no blocks.
const DEFAULT_BLOCK: usize = 32;

/// The cost of errors in a row. Columns are processed in an order of their own: position p is
/// column `order[p]`.
pub struct Metric {
    /// The column of each position. The columns of a block are adjacent.
    pub(super) order: Vec<usize>,
    /// Positions that are rounded together.
    pub(super) block: usize,
    /// The diagonal of H by position: the cost of an error without feedback.
    pub(super) weights: Vec<f32>,
    /// Factors of H; `None` if H is diagonal.
    pub(super) factors: Option<Factors>,
    /// Factors of H restricted to each block; empty if H is diagonal.
    pub(super) block_factors: Vec<Factors>,
    /// H by position, damped; empty if H is diagonal.
    moments: Vec<f32>,
}

/// D and M of some columns.
pub(super) struct Factors {
    /// The diagonal of D: the cost of an error after feedback.
    pub(super) d: Vec<f32>,
    /// M above its diagonal, column by column.
    m: Vec<f32>,
}

impl Metric {
    /// Every error costs its square.
    pub fn plain(columns: usize, block: Option<u32>) -> Self {
        Metric::weighted(vec![1.0; columns], block)
    }

    /// A diagonal H from the mean squares of the inputs. An error if one of them is negative or not
    /// finite.
    pub fn diagonal(mean_squares: &[f32], block: Option<u32>) -> Result<Self> {
        for square in mean_squares {
            if !square.is_finite() || *square < 0.0 {
                return Err(bad("a mean square of an input is negative, or no number"));
            }
        }
        let damping = damping_for(mean_squares);
        if damping == 0.0 {
            return Ok(Metric::plain(mean_squares.len(), block));
        }
        let damped = mean_squares
            .iter()
            .map(|square| add_damping(*square, damping));
        Ok(Metric::weighted(damped.collect(), block))
    }

    fn weighted(weights: Vec<f32>, block: Option<u32>) -> Self {
        Metric {
            order: (0..weights.len()).collect(),
            block: block_len(block, DEFAULT_BLOCK),
            weights,
            factors: None,
            block_factors: vec![],
            moments: vec![],
        }
    }

    /// From all second moments of the inputs, row-major. The columns of a `block` stay together;
    /// those with larger moments come first, while later columns can still compensate their errors.
    /// An error if `matrix` has the wrong size, is not finite or is not positive definite.
    pub fn full(matrix: &[f32], columns: usize, block: Option<u32>) -> Result<Self> {
        if Some(matrix.len()) != columns.checked_mul(columns) || columns == 0 {
            return Err(bad(&format!(
                "{} numbers are no moments of {columns} inputs",
                matrix.len()
            )));
        }
        for moment in matrix {
            if !moment.is_finite() {
                return Err(bad("a moment is no number"));
            }
        }
        let squares: Vec<f32> = matrix.iter().step_by(columns + 1).copied().collect();
        let damping = damping_for(&squares);
        if damping <= 0.0 {
            return Ok(Metric::plain(columns, block));
        }
        let order = column_order(&squares, block_len(block, columns));
        let mut moments = vec![0.0; matrix.len()];
        let rows = moments.par_chunks_mut(columns).enumerate();
        rows.for_each(|(position, out)| {
            let row = &matrix[order[position] * columns..][..columns];
            for (out, column) in out.iter_mut().zip(&order) {
                *out = row[*column];
            }
            out[position] = add_damping(out[position], damping);
        });
        let block = block_len(block, DEFAULT_BLOCK);
        let mut block_factors = vec![];
        for first in (0..columns).step_by(block) {
            let range = first..columns.min(first + block);
            block_factors.push(Factors::of(&moments, columns, range)?);
        }
        Ok(Metric {
            factors: Some(Factors::of(&moments, columns, 0..columns)?),
            order,
            block,
            weights: moments.iter().step_by(columns + 1).copied().collect(),
            block_factors,
            moments,
        })
    }

    /// Number of columns.
    pub(super) fn columns(&self) -> usize {
        self.order.len()
    }

    /// The row of H at position `k`.
    #[inline(always)]
    pub(super) fn moments_of(&self, k: usize) -> &[f32] {
        &self.moments[k * self.columns()..][..self.columns()]
    }

    /// H times `errors`.
    #[inline(always)]
    pub(super) fn multiply(&self, errors: &[Lanes]) -> Vec<Lanes> {
        let mut products = Vec::with_capacity(errors.len());
        for (k, error) in errors.iter().enumerate() {
            products.push(match self.factors {
                None => error.map(|error| error * self.weights[k]),
                Some(_) => add_products([0.0; LANES], errors, self.moments_of(k)),
            });
        }
        products
    }

    /// The cost of `errors`.
    #[inline(always)]
    pub(super) fn cost(&self, errors: &[Lanes]) -> Lanes {
        if let Some(factors) = &self.factors {
            return factors.cost(errors);
        }
        let mut cost = [0.0; LANES];
        for (error, weight) in errors.iter().zip(&self.weights) {
            for lane in 0..LANES {
                cost[lane] += weight * error[lane] * error[lane];
            }
        }
        cost
    }
}

/// The length of a `block`, at least 1; `default` if the format has no blocks.
fn block_len(block: Option<u32>, default: usize) -> usize {
    match block {
        Some(block) => block.max(1) as usize,
        None => default,
    }
}

impl Factors {
    /// Factors the rows and columns `range` of a symmetric matrix with `columns` columns. An error
    /// if they are not positive definite.
    fn of(moments: &[f32], columns: usize, range: Range<usize>) -> Result<Self> {
        let size = range.len();
        // Positions are reversed, so that factoring starts at the last one.
        let mut factor = vec![0.0f64; size * size];
        let rows = factor.par_chunks_mut(size).enumerate();
        rows.for_each(|(row, out)| {
            let moments = &moments[(range.end - 1 - row) * columns..][range.clone()];
            for column in 0..=row {
                out[column] = f64::from(moments[size - 1 - column]);
            }
        });
        cholesky(&mut factor, size)?;
        let mut d = Vec::with_capacity(size);
        let mut m = Vec::with_capacity(size * (size - 1) / 2);
        for k in 0..size {
            let column = size - 1 - k;
            let pivot = factor[column * size + column];
            d.push(pivot.powi(2) as f32);
            for i in 0..k {
                let row = size - 1 - i;
                m.push((factor[row * size + column] / pivot) as f32);
            }
        }
        Ok(Factors { d, m })
    }

    /// Column `k` of M above the diagonal: `M_ik` for each i < k.
    #[inline(always)]
    pub(super) fn m_column(&self, k: usize) -> &[f32] {
        &self.m[k * (k.max(1) - 1) / 2..][..k]
    }

    /// The cost of `errors`.
    #[inline(always)]
    pub(super) fn cost(&self, errors: &[Lanes]) -> Lanes {
        let mut cost = [0.0; LANES];
        for (k, (error, d)) in errors.iter().zip(&self.d).enumerate() {
            let rest = add_products(*error, &errors[..k], self.m_column(k));
            for lane in 0..LANES {
                cost[lane] += d * rest[lane] * rest[lane];
            }
        }
        cost
    }

    /// Replaces `right` by the inverse of the matrix times `right`.
    #[inline(always)]
    pub(super) fn solve(&self, right: &mut [Lanes]) {
        for k in (0..right.len()).rev() {
            let (before, from) = right.split_at_mut(k);
            for (right, m) in before.iter_mut().zip(self.m_column(k)) {
                for lane in 0..LANES {
                    right[lane] -= from[0][lane] * m;
                }
            }
        }
        for k in 0..right.len() {
            let scaled = right[k].map(|right| right / self.d[k]);
            right[k] = subtract_products(scaled, &right[..k], self.m_column(k));
        }
    }
}

fn bad(what: &str) -> Problem {
    Problem::new(Code::WeightsMoments, what.to_string())
        .help("run the `calibrate` stage again, over another text")
}

/// What is added to a diagonal of H that consists of `squares`.
fn damping_for(squares: &[f32]) -> f64 {
    let sum: f64 = squares.iter().map(|square| f64::from(*square)).sum();
    DAMPING * (sum / squares.len().max(1) as f64)
}

/// `square + damping`, added in f64.
fn add_damping(square: f32, damping: f64) -> f32 {
    (f64::from(square) + damping) as f32
}

/// All columns, by descending `squares`: blocks by their sum, and columns within a block. Equal
/// ones keep their order.
fn column_order(squares: &[f32], block: usize) -> Vec<usize> {
    let mut blocks: Vec<(f64, Vec<usize>)> = vec![];
    for first in (0..squares.len()).step_by(block) {
        let mut columns: Vec<usize> = (first..squares.len().min(first + block)).collect();
        columns.sort_by(|a, b| squares[*b].total_cmp(&squares[*a]));
        let sum = columns.iter().map(|column| f64::from(squares[*column]));
        blocks.push((sum.sum(), columns));
    }
    blocks.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut order = Vec::with_capacity(squares.len());
    for (_, columns) in blocks {
        order.extend(columns);
    }
    order
}

/// Replaces the lower triangle of `matrix` by its Cholesky factor: a panel of columns at a time,
/// then all rows below the panel in parallel. Each element is summed by one thread in a fixed
/// order.
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

/// The dot product, up to the end of the shorter slice.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let length = a.len().min(b.len());
    let (a, a_rest) = a[..length].as_chunks::<LANES>();
    let (b, b_rest) = b[..length].as_chunks::<LANES>();
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
        let factors = metric.factors.as_ref().unwrap();
        // The element of I + M at (i, k).
        let m = |i: usize, k: usize| match factors.m_column(k).get(i) {
            _ if i == k => 1.0,
            Some(m) => *m,
            None => 0.0,
        };
        for a in 0..3 {
            for b in 0..3 {
                let mut product = 0.0;
                for k in 0..3 {
                    product += m(a, k) * m(b, k) * factors.d[k];
                }
                let mut expected = moments[metric.order[a] * 3 + metric.order[b]];
                if a == b {
                    expected += damping;
                }
                assert!(
                    (product - expected).abs() < 1e-5,
                    "{a} {b}: {product} {expected}"
                );
            }
        }
    }

    #[test]
    fn invalid_moments_are_refused() {
        fn message(moments: &[f32], columns: usize) -> String {
            let result = Metric::full(moments, columns, None);
            result.err().unwrap().message
        }
        assert_eq!(
            message(&[1.0; 3], 2),
            "3 numbers are no moments of 2 inputs"
        );
        assert_eq!(
            message(&[1.0, f32::NAN, 0.0, 1.0], 2),
            "a moment is no number"
        );
        assert!(message(&[1.0, 9.0, 9.0, 1.0], 2).contains("not positive definite"));
        // Inputs that are always 0.
        assert!(Metric::full(&[0.0; 4], 2, None).unwrap().factors.is_none());
        assert!(Metric::diagonal(&[1.0, -1.0], None).is_err());
    }
}
