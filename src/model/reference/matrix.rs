//! A matrix of f32 and its products.
//!
//! The products use the crate `gemm`, as candle and faer do. The order of summation depends on the
//! shapes only, not on the number of threads.
#![allow(unsafe_code)]

use std::ops::Range;

use gemm_common::Parallelism;
use gemm_f32::gemm::f32::get_gemm_fn;
use rayon::prelude::*;

/// A matrix, row-major.
#[derive(Clone)]
pub(super) struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// A matrix of these values. `None` if their number is not `rows * columns`.
    pub(super) fn new(rows: usize, columns: usize, values: Vec<f32>) -> Option<Self> {
        if rows.checked_mul(columns) != Some(values.len()) {
            return None;
        }
        Some(Matrix {
            rows,
            columns,
            values,
        })
    }

    /// A matrix of zeros.
    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        Matrix {
            rows,
            columns,
            values: vec![0.0; rows * columns],
        }
    }

    /// The number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// All values, row after row.
    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, row after row.
    pub(super) fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// One row.
    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }

    /// One row.
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.columns..][..self.columns]
    }

    /// Calls `change` with the number and the values of each row, on several threads.
    pub(super) fn for_each_row(&mut self, change: impl Fn(usize, &mut [f32]) + Sync) {
        // A chunk must not be empty. Without columns there are no values and so no chunks.
        let rows = self.values.par_chunks_mut(self.columns.max(1));
        rows.enumerate()
            .for_each(|(row, values)| change(row, values));
    }

    /// A copy of some rows.
    pub(super) fn some_rows(&self, rows: Range<usize>) -> Matrix {
        Matrix {
            rows: rows.len(),
            columns: self.columns,
            values: self.values[rows.start * self.columns..rows.end * self.columns].to_vec(),
        }
    }

    /// A copy of some columns of some rows.
    pub(super) fn block(&self, rows: Range<usize>, columns: Range<usize>) -> Matrix {
        let mut values = Vec::with_capacity(rows.len() * columns.len());
        for row in rows.clone() {
            values.extend_from_slice(&self.row(row)[columns.clone()]);
        }
        Matrix {
            rows: rows.len(),
            columns: columns.len(),
            values,
        }
    }

    /// Appends the rows of `below`.
    pub(super) fn append(&mut self, below: &Matrix) {
        assert_eq!(self.columns, below.columns);
        self.rows += below.rows;
        self.values.extend_from_slice(&below.values);
    }

    /// Adds `other` element by element.
    pub(super) fn add(&mut self, other: &Matrix) {
        assert_eq!((self.rows, self.columns), (other.rows, other.columns));
        for (value, other) in self.values.iter_mut().zip(&other.values) {
            *value += other;
        }
    }

    /// `self b`.
    pub(super) fn times(&self, b: &Matrix) -> Matrix {
        assert_eq!(self.columns, b.rows);
        let mut product = Matrix::zeros(self.rows, b.columns);
        multiply(self, b, [b.columns, 1], b.columns, &mut product, 0);
        product
    }

    /// `self b^T`.
    pub(super) fn times_transposed(&self, b: &Matrix) -> Matrix {
        let mut product = Matrix::zeros(self.rows, b.rows);
        self.times_transposed_into(b, &mut product, 0);
        product
    }

    /// Writes `self b^T` into `product`, from column `first` on.
    pub(super) fn times_transposed_into(&self, b: &Matrix, product: &mut Matrix, first: usize) {
        assert_eq!(self.columns, b.columns);
        multiply(self, b, [1, b.columns], b.rows, product, first);
    }
}

/// Writes the product of `a` and a matrix of `n` columns into `product`, from column `first` on.
/// The element `[i, j]` of that matrix is the value `i * b_rows + j * b_columns` of `b`.
fn multiply(
    a: &Matrix,
    b: &Matrix,
    [b_rows, b_columns]: [usize; 2],
    n: usize,
    product: &mut Matrix,
    first: usize,
) {
    let (m, k) = (a.rows, a.columns);
    assert!(product.rows == m && first <= product.columns && n <= product.columns - first);
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.values.len() == m * k);
    assert!(product.values.len() == m * product.columns);
    assert!(k == 0 || (k - 1) * b_rows + (n - 1) * b_columns < b.values.len());
    let to = product.values[first..].as_mut_ptr();
    // The kernels require contiguous columns of the destination. Ours has contiguous rows, so they
    // compute the transposed product of the transposed matrices.
    // SAFETY: by the asserts above, all values that the strides reach are inside of their matrices,
    // and `product` is borrowed exclusively.
    unsafe {
        get_gemm_fn()(
            n,
            m,
            k,
            to,
            product.columns as isize,
            1,
            false,
            b.values.as_ptr(),
            b_rows as isize,
            b_columns as isize,
            a.values.as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, so that every order of summation yields the same.
    fn matrix(rows: usize, columns: usize) -> Matrix {
        let mut matrix = Matrix::zeros(rows, columns);
        for (i, value) in matrix.values.iter_mut().enumerate() {
            *value = (i * 7 % 11) as f32 - 5.0;
        }
        matrix
    }

    fn expected(a: &Matrix, b: impl Fn(usize, usize) -> f32, n: usize) -> Vec<f32> {
        let mut values = vec![];
        for i in 0..a.rows {
            for j in 0..n {
                let mut sum = 0.0;
                for k in 0..a.columns {
                    sum += a.row(i)[k] * b(k, j);
                }
                values.push(sum);
            }
        }
        values
    }

    /// From one row to more than a kernel processes at a time, from one column to several blocks.
    #[test]
    fn products_are_sums_of_products() {
        for m in [1, 2, 17, 130] {
            for n in [1, 3, 40, 300] {
                for k in [0, 1, 5, 64, 1100] {
                    let (a, b, t) = (matrix(m, k), matrix(k, n), matrix(n, k));
                    let sums = expected(&a, |k, j| b.row(k)[j], n);
                    assert_eq!(a.times(&b).values, sums, "{m} {n} {k}");
                    let sums = expected(&a, |k, j| t.row(j)[k], n);
                    assert_eq!(a.times_transposed(&t).values, sums, "{m} {n} {k}");
                }
            }
        }
    }

    #[test]
    fn a_product_changes_only_its_columns() {
        let (a, b) = (matrix(4, 9), matrix(3, 9));
        let mut product = Matrix::zeros(4, 6);
        product.values.fill(0.5);
        a.times_transposed_into(&b, &mut product, 2);
        let alone = a.times_transposed(&b);
        for row in 0..4 {
            let (before, after) = product.row(row).split_at(2);
            assert_eq!((before, &after[3..]), (&[0.5; 2][..], &[0.5][..]));
            assert_eq!(&after[..3], alone.row(row));
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (mut a, mut b) = (matrix(150, 1100), matrix(700, 1100));
        for value in a.values.iter_mut().chain(&mut b.values) {
            *value = (*value + 0.1).sin();
        }
        let product_bits = |threads| -> Vec<u32> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let product = pool.build().unwrap().install(|| a.times_transposed(&b));
            product.values.into_iter().map(f32::to_bits).collect()
        };
        let expected = product_bits(1);
        for threads in [2, 3, 7] {
            assert_eq!(product_bits(threads), expected, "{threads}");
        }
    }
}
