//! Second moments of a linear layer's input: the mean of `x x^T`, or only its diagonal.
//!
//! The upper triangle of the matrix is summed in square tiles. Each element is summed over the
//! tokens in their order, without fused multiply-add, so that every number of threads and every
//! instruction set gives the same bits.

use rayon::prelude::*;

use crate::model::quant::kernels::{Loop, run_wide};

/// Rows and columns of a tile.
const EDGE: usize = 64;
/// Rows and columns of the block that is summed in registers.
const ROWS: usize = 4;
const LANES: usize = 16;

/// The sum of squares of each column.
pub(super) struct Diagonal {
    tokens: u64,
    sums: Vec<f64>,
}

impl Diagonal {
    /// For inputs with `columns` columns.
    pub(super) fn new(columns: usize) -> Self {
        Diagonal {
            tokens: 0,
            sums: vec![0.0; columns],
        }
    }

    /// Adds the rows of `values`.
    pub(super) fn add(&mut self, values: &[f32]) {
        for row in values.chunks_exact(self.sums.len().max(1)) {
            self.tokens += 1;
            for (sum, x) in self.sums.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
    }

    /// The number of rows that were added.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The mean of each column.
    pub(super) fn means(&self) -> Vec<f32> {
        let tokens = self.tokens.max(1) as f64;
        self.sums.iter().map(|sum| (sum / tokens) as f32).collect()
    }
}

/// Sums of `x x^T`: the upper triangle of the matrix, about 2 bytes per element of the full one.
pub(super) struct Moments {
    columns: usize,
    tokens: u64,
    tiles: Vec<Tile>,
}

/// A tile of the matrix. `row` and `column` count tiles.
struct Tile {
    row: usize,
    column: usize,
    sums: Vec<f32>,
}

/// Bytes of the sums for `columns` columns.
pub(super) fn moment_bytes(columns: u64) -> u64 {
    let blocks = columns.div_ceil(EDGE as u64);
    (blocks.saturating_mul(blocks + 1) / 2).saturating_mul((EDGE * EDGE * 4) as u64)
}

impl Moments {
    /// For inputs with `columns` columns.
    pub(super) fn new(columns: usize) -> Self {
        let blocks = columns.div_ceil(EDGE);
        let mut tiles = vec![];
        for row in 0..blocks {
            for column in row..blocks {
                tiles.push(Tile {
                    row,
                    column,
                    sums: vec![0.0; EDGE * EDGE],
                });
            }
        }
        Moments {
            columns,
            tokens: 0,
            tiles,
        }
    }

    /// Adds the rows of `values`.
    pub(super) fn add(&mut self, values: &[f32]) {
        let tokens = values.len() / self.columns.max(1);
        let (mut left, mut right) = (vec![], vec![]);
        for block in 0..self.columns.div_ceil(EDGE) {
            left.push(panel::<ROWS>(values, self.columns, block));
            right.push(panel::<LANES>(values, self.columns, block));
        }
        self.tokens += tokens as u64;
        self.tiles.par_iter_mut().for_each(|tile| {
            if let (Some(left), Some(right)) = (left.get(tile.row), right.get(tile.column)) {
                run_wide(Products {
                    left,
                    right,
                    sums: &mut tile.sums,
                });
            }
        });
    }

    /// The rows of the means.
    pub(super) fn rows(&self) -> impl Iterator<Item = Vec<f32>> {
        (0..self.columns).map(|row| self.row(row))
    }

    fn row(&self, row: usize) -> Vec<f32> {
        (0..self.columns)
            .map(|column| self.mean(row, column))
            .collect()
    }

    /// The mean of the products of two columns.
    fn mean(&self, row: usize, column: usize) -> f32 {
        let blocks = self.columns.div_ceil(EDGE);
        let (low, high) = (row.min(column), row.max(column));
        let (a, b) = (low / EDGE, high / EDGE);
        // The number of tiles in the rows above `a`: each row has one tile less than the last one.
        let before = a * blocks - a * a.saturating_sub(1) / 2;
        let Some(tile) = self.tiles.get(before + b - a) else {
            return 0.0;
        };
        let sum = tile.sums[low % EDGE * EDGE + high % EDGE];
        (f64::from(sum) / self.tokens.max(1) as f64) as f32
    }
}

/// Packs the columns `block * EDGE .. (block + 1) * EDGE`, padded with zeros: all rows of the first
/// `WIDTH` columns, then all rows of the next, and so on.
fn panel<const WIDTH: usize>(values: &[f32], columns: usize, block: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len() / columns.max(1) * EDGE);
    for start in (block * EDGE..(block + 1) * EDGE).step_by(WIDTH) {
        for row in values.chunks_exact(columns.max(1)) {
            let part = row
                .get(start.min(columns)..columns.min(start + WIDTH))
                .unwrap_or_default();
            out.extend_from_slice(part);
            out.resize(out.len() + WIDTH - part.len(), 0.0);
        }
    }
    out
}

/// The products of a tile, over the tokens of one call.
struct Products<'a> {
    left: &'a [f32],
    right: &'a [f32],
    sums: &'a mut [f32],
}

impl Loop for Products<'_> {
    type Output = ();

    /// Loops over constant ranges, which the compiler unrolls. With the sums in registers this is
    /// fifty times as fast.
    #[inline(always)]
    fn run(self) {
        let Products { left, right, sums } = self;
        let tokens = left.len() / EDGE;
        for (top, left) in left.chunks_exact((tokens * ROWS).max(1)).enumerate() {
            for (start, right) in right.chunks_exact((tokens * LANES).max(1)).enumerate() {
                let mut tile = [[0f32; LANES]; ROWS];
                let (left, _) = left.as_chunks::<ROWS>();
                let (right, _) = right.as_chunks::<LANES>();
                for (left, right) in left.iter().zip(right) {
                    for row in 0..ROWS {
                        for lane in 0..LANES {
                            tile[row][lane] += left[row] * right[lane];
                        }
                    }
                }
                for (row, part) in tile.iter().enumerate() {
                    let at = (top * ROWS + row) * EDGE + start * LANES;
                    for (sum, part) in sums.iter_mut().skip(at).zip(part) {
                        *sum += part;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_values(tokens: usize, columns: usize) -> Vec<f32> {
        (0..tokens * columns)
            .map(|i| ((i * i) as f32 * 0.1).sin())
            .collect()
    }

    #[test]
    fn moments_are_the_means_of_products() {
        let (tokens, columns) = (37, 131);
        let values = sample_values(2 * tokens, columns);
        let (mut moments, mut diagonal) = (Moments::new(columns), Diagonal::new(columns));
        for window in values.chunks(tokens * columns) {
            moments.add(window);
            diagonal.add(window);
        }
        assert_eq!(diagonal.tokens(), 74);
        let diagonal = diagonal.means();
        for i in 0..columns {
            let row = moments.row(i);
            for (j, found) in row.iter().enumerate() {
                let products = values
                    .chunks(columns)
                    .map(|x| f64::from(x[i]) * f64::from(x[j]));
                let expected = products.sum::<f64>() / (2 * tokens) as f64;
                assert!(
                    (f64::from(*found) - expected).abs() < 1e-6,
                    "{i} {j} {found} {expected}"
                );
                assert_eq!(*found, moments.row(j)[i], "symmetric");
            }
            assert!((row[i] - diagonal[i]).abs() < 1e-6);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (left, right) = (
            sample_values(50, EDGE),
            sample_values(51, EDGE).split_off(EDGE),
        );
        let (mut here, mut anywhere) = (vec![1.0; EDGE * EDGE], vec![1.0; EDGE * EDGE]);
        run_wide(Products {
            left: &left,
            right: &right,
            sums: &mut here,
        });
        Products {
            left: &left,
            right: &right,
            sums: &mut anywhere,
        }
        .run();
        assert_eq!(here, anywhere);
    }

    #[test]
    fn every_number_of_threads_gives_the_same_bits() {
        let values = sample_values(16, 200);
        let rows = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let mut moments = Moments::new(200);
            pool.install(|| moments.add(&values));
            moments.rows().flatten().collect::<Vec<f32>>()
        };
        assert_eq!(rows(1), rows(3));
    }
}
