//! An orthogonal matrix that spreads outliers of the residual stream over all of its channels.
//!
//! RMSNorm without weights commutes with a rotation Q of the residual stream: `norm(x Q) = norm(x)
//! Q`. So Q can be multiplied into the weights around it, and the model stays the same: Ashkboos et
//! al., *QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs* (2024), section 4.
//!
//! For a width of `2^k m` with m odd, `Q = diag(signs) (H (x) C)`, where H is the Hadamard matrix of
//! `2^k` rows and C the Hartley matrix of m rows, `cos(2 pi i j / m) + sin(2 pi i j / m)`, both
//! divided by the root of their size. The signs are random, but always the same.

use super::decoder::not_supported;
use crate::base::Result;

/// The largest m. The time of a rotation grows with it.
const MAX_ODD: usize = 255;

/// The rotation of vectors of one width.
pub struct Rotation {
    signs: Vec<f32>,
    /// m, the odd factor of the width.
    odd: usize,
    /// C, `[m, m]`.
    hartley: Vec<f32>,
}

impl Rotation {
    /// The rotation of vectors of `width` values. Not supported: a large odd factor of `width`.
    pub fn new(width: u32) -> Result<Self> {
        let odd = (width >> width.trailing_zeros().min(31)) as usize;
        if odd > MAX_ODD {
            let part = format!("a width of {width}, whose odd factor {odd} is above {MAX_ODD}");
            return Err(not_supported("a rotation", part));
        }
        let mut hartley = vec![];
        for i in 0..odd {
            for j in 0..odd {
                let angle = std::f64::consts::TAU * (i * j % odd) as f64 / odd as f64;
                let sum = libm::cos(angle) + libm::sin(angle);
                hartley.push((sum / (odd as f64).sqrt()) as f32);
            }
        }
        let mut state = 0;
        let mut signs = vec![];
        for _ in 0..width {
            signs.push(if split_mix(&mut state) >> 63 == 0 {
                1.0
            } else {
                -1.0
            });
        }
        Ok(Rotation {
            signs,
            odd,
            hartley,
        })
    }

    /// Multiplies by Q: `values` are `[width, inner]`, of which each column is a vector.
    pub fn apply(&self, values: &mut [f32], inner: usize) {
        for (row, sign) in values.chunks_exact_mut(inner).zip(&self.signs) {
            if *sign < 0.0 {
                for value in row {
                    *value = -*value;
                }
            }
        }
        self.apply_hadamard(values, inner);
        self.apply_hartley(values, inner);
    }

    /// The fast Walsh-Hadamard transform over the groups of m rows.
    fn apply_hadamard(&self, values: &mut [f32], inner: usize) {
        let group = self.odd * inner;
        let groups = self.signs.len() / self.odd;
        let mut half = group;
        while half < values.len() {
            for pair in values.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        let factor = (groups as f64).sqrt().recip() as f32;
        for value in values {
            *value *= factor;
        }
    }

    /// Multiplies each group of m rows by C.
    fn apply_hartley(&self, values: &mut [f32], inner: usize) {
        if self.odd == 1 {
            return;
        }
        let mut mixed = vec![0.0; self.odd * inner];
        for group in values.chunks_exact_mut(self.odd * inner) {
            mixed.fill(0.0);
            let rows = mixed.chunks_exact_mut(inner);
            for (row, factors) in rows.zip(self.hartley.chunks_exact(self.odd)) {
                for (factor, values) in factors.iter().zip(group.chunks_exact(inner)) {
                    for (sum, value) in row.iter_mut().zip(values) {
                        *sum += factor * value;
                    }
                }
            }
            group.copy_from_slice(&mixed);
        }
    }
}

/// The next number of splitmix64 (Steele, Lea and Flood 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e3779b97f4a7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Q, `[width, width]`: the rotations of the unit vectors.
    fn matrix(width: u32) -> Vec<Vec<f32>> {
        let rotation = Rotation::new(width).unwrap();
        let mut rows = vec![];
        for unit in 0..width as usize {
            let mut row = vec![0.0; width as usize];
            row[unit] = 1.0;
            rotation.apply(&mut row, 1);
            rows.push(row);
        }
        rows
    }

    #[test]
    fn the_matrix_is_orthogonal_and_spreads_every_value() {
        for width in [1, 2, 8, 3, 9, 12, 96, 320] {
            let matrix = matrix(width);
            for (i, a) in matrix.iter().enumerate() {
                for (j, b) in matrix.iter().enumerate() {
                    let product: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    let expected = if i == j { 1.0 } else { 0.0 };
                    assert!(
                        (product - expected).abs() < 1e-5,
                        "{width}: {i} {j} {product}"
                    );
                }
                let largest = a.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                assert!(largest <= (2.0 / width as f32).sqrt() + 1e-6, "{width}");
            }
        }
    }

    #[test]
    fn columns_are_rotated_like_rows() {
        let rotation = Rotation::new(12).unwrap();
        let value = |row: usize, column: usize| ((row * 7 + column * 5) % 11) as f32;
        let mut all: Vec<f32> = (0..36).map(|index| value(index / 3, index % 3)).collect();
        rotation.apply(&mut all, 3);
        for column in 0..3 {
            let mut one: Vec<f32> = (0..12).map(|row| value(row, column)).collect();
            rotation.apply(&mut one, 1);
            let found: Vec<f32> = (0..12).map(|row| all[row * 3 + column]).collect();
            assert_eq!(found, one);
        }
    }

    #[test]
    fn a_large_odd_factor_is_refused() {
        assert!(Rotation::new(2 * 255).is_ok());
        let problem = Rotation::new(2 * 257).err().unwrap();
        assert!(problem.message.contains("odd factor 257"), "{problem}");
    }
}
