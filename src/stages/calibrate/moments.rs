//! Second moments of a linear layer's input: the mean of `x x^T`, or its diagonal alone.
//!
//! The matrix is summed in square tiles of its upper half. An element is one sum over tokens in
//! their order, by multiplication and addition that each round: threads and instruction sets give
//! the same bits.

use rayon::prelude::*;

use crate::model::quant::kernels::{Loop, run_wide};

/// Rows and columns of a tile.
const EDGE: usize = 64;
/// Rows and columns of what is summed in registers.
const ROWS: usize = 4;
const LANES: usize = 16;

/// Sums of squares, one a column.
pub struct Diagonal {
    tokens: u64,
    sums: Vec<f64>,
}

impl Diagonal {
    /// For inputs of `columns` numbers.
    pub fn new(columns: usize) -> Self {
        Diagonal {
            tokens: 0,
            sums: vec![0.0; columns],
        }
    }

    /// Adds the rows of `values`.
    pub fn add(&mut self, values: &[f32]) {
        for row in values.chunks_exact(self.sums.len().max(1)) {
            self.tokens += 1;
            self.sums
                .iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        }
    }

    /// Rows seen so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The means.
    pub fn means(&self) -> impl Iterator<Item = f32> + '_ {
        self.sums
            .iter()
            .map(|sum| (sum / self.tokens.max(1) as f64) as f32)
    }
}

/// Sums of `x x^T`: half of the matrix, 2 bytes an element of the whole.
pub struct Moments {
    columns: usize,
    tokens: u64,
    tiles: Vec<Tile>,
}

struct Tile {
    /// In tiles.
    row: usize,
    column: usize,
    sums: Vec<f32>,
}

/// Peak bytes of the sums for `columns` columns.
pub fn moment_bytes(columns: u64) -> u64 {
    let blocks = columns.div_ceil(EDGE as u64);
    (blocks.saturating_mul(blocks + 1) / 2).saturating_mul((EDGE * EDGE * 4) as u64)
}

impl Moments {
    /// For inputs of `columns` numbers.
    pub fn new(columns: usize) -> Self {
        let blocks = columns.div_ceil(EDGE);
        let places = (0..blocks).flat_map(|row| (row..blocks).map(move |column| (row, column)));
        let tiles = places
            .map(|(row, column)| Tile {
                row,
                column,
                sums: vec![0.0; EDGE * EDGE],
            })
            .collect();
        Moments {
            columns,
            tokens: 0,
            tiles,
        }
    }

    /// Adds the rows of `values`.
    pub fn add(&mut self, values: &[f32]) {
        let tokens = values.len() / self.columns.max(1);
        let blocks = 0..self.columns.div_ceil(EDGE);
        let left: Vec<Vec<f32>> = blocks
            .clone()
            .map(|block| panel::<ROWS>(values, self.columns, block))
            .collect();
        let right: Vec<Vec<f32>> = blocks
            .map(|block| panel::<LANES>(values, self.columns, block))
            .collect();
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

    /// Row `row` of the means.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let blocks = self.columns.div_ceil(EDGE);
        let of = |column: usize| {
            let (low, high) = (row.min(column), row.max(column));
            let (a, b) = (low / EDGE, high / EDGE);
            // Tiles of the rows before `a`, each row one shorter than the last.
            let before = a * blocks - a * a.saturating_sub(1) / 2;
            let sum = self
                .tiles
                .get(before + b - a)
                .and_then(|tile| tile.sums.get(low % EDGE * EDGE + high % EDGE));
            sum.map_or(0.0, |sum| {
                (f64::from(*sum) / self.tokens.max(1) as f64) as f32
            })
        };
        (0..self.columns).map(of).collect()
    }
}

/// Columns `block * EDGE ..`, zeros where there are none: all rows of the first `WIDTH`, all rows
/// of the next, and so on.
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

/// A tile's products of some tokens.
struct Products<'a> {
    left: &'a [f32],
    right: &'a [f32],
    sums: &'a mut [f32],
}

impl Loop for Products<'_> {
    type Output = ();

    /// As loops over constants, which the compiler unrolls: sums that it keeps in registers are
    /// fifty times as fast.
    #[inline(always)]
    fn run(self) {
        let Products { left, right, sums } = self;
        let tokens = left.len() / EDGE;
        for (top, left) in left.chunks_exact((tokens * ROWS).max(1)).enumerate() {
            for (start, right) in right.chunks_exact((tokens * LANES).max(1)).enumerate() {
                let mut tile = [[0f32; LANES]; ROWS];
                for (left, right) in left
                    .as_chunks::<ROWS>()
                    .0
                    .iter()
                    .zip(right.as_chunks::<LANES>().0)
                {
                    for row in 0..ROWS {
                        for lane in 0..LANES {
                            tile[row][lane] += left[row] * right[lane];
                        }
                    }
                }
                for (row, part) in tile.iter().enumerate() {
                    let at = (top * ROWS + row) * EDGE + start * LANES;
                    sums.iter_mut()
                        .skip(at)
                        .zip(part)
                        .for_each(|(sum, part)| *sum += part);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(tokens: usize, columns: usize) -> Vec<f32> {
        (0..tokens * columns)
            .map(|i| ((i * i) as f32 * 0.1).sin())
            .collect()
    }

    #[test]
    fn moments_are_the_means_of_products() {
        let (tokens, columns) = (37, 131);
        let values = values(2 * tokens, columns);
        let (mut moments, mut diagonal) = (Moments::new(columns), Diagonal::new(columns));
        for window in values.chunks(tokens * columns) {
            moments.add(window);
            diagonal.add(window);
        }
        assert_eq!(diagonal.tokens(), 74);
        let diagonal: Vec<f32> = diagonal.means().collect();
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
        let (left, right) = (values(50, EDGE), values(51, EDGE).split_off(EDGE));
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
    fn threads_do_not_matter() {
        let values = values(16, 200);
        let rows = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let mut moments = Moments::new(200);
            pool.install(|| moments.add(&values));
            (0..200)
                .flat_map(|row| moments.row(row))
                .collect::<Vec<f32>>()
        };
        assert_eq!(rows(1), rows(3));
    }
}
