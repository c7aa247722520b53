//! Key centring: a fixed vector c is subtracted from every rotated key of a KV head.
//!
//! Softmax does not change when a constant is added to a row of scores, and `q (k - c) = q k - q
//! c`, so this changes nothing but the range of keys and scores. Qwen2 models have key biases of
//! several hundred: with them as they are, real scores lie below those of masked columns, and an
//! fp16 score has steps of 8.
//!
//! The subtraction must come before a large key is rounded to fp16, so the bias b is split: `b = (b
//! - u) + u` with u = b where columns turn slowly. With R_j the rotation at position j, whose
//! columns i and i + n/2 turn by the angle `a = j * frequency_i`:
//!
//! ```text
//! R_j (W x + b) - c = R_j (W x + (b - u)) + (R_j - 1) u + (u - c)
//! ((R_j - 1) u)_low  = (1 - cos a) (-u_low)  + sin a (-u_high)
//! ((R_j - 1) u)_high = (1 - cos a) (-u_high) + sin a u_low          1 - cos a = sin^2 a / (1 + cos a)
//! ```
//!
//! The last form keeps its digits in fp16 where cos a is nearly 1: the large biases of these models
//! are in the slowest columns. So `(R_j - 1) u + (u - c)` is a linear layer of `[1 - cos, sin]` of
//! a position, whose bias is `u - c`.

use std::collections::BTreeMap;

use crate::base::{Code, Problem, Result};
use crate::model::decoder::{DecoderSpec, Rotary, not_supported};

/// Columns that turn further than this within the context, in radians, are not split: their mean is
/// no longer near their values, so that no constant makes them small.
const SLOW: f64 = 1.0;

/// What this module calls itself in problems.
pub(super) const CENTRING: &str = "key centring";

/// The keys of a layer, as far as centring depends on them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    heads: usize,
    head_dim: usize,
    base: f64,
}

impl Keys {
    /// Those of a layer of `model` that turns them by `rotary`. Refused: heads of which some
    /// columns do not turn.
    pub(super) fn new(model: &DecoderSpec, rotary: &Rotary) -> Result<Self> {
        let Rotary {
            // `requant` gives the rows of every file in half-split order.
            layout: _,
            dims,
            base,
        } = rotary;
        if *dims != model.head_dim {
            let part = format!("RoPE of {dims} of {} columns", model.head_dim);
            return Err(not_supported(CENTRING, part));
        }
        Ok(Keys {
            heads: model.kv_heads as usize,
            head_dim: model.head_dim as usize,
            base: f64::from(*base),
        })
    }

    /// The angle by which column `i` of a head turns from one position to the next: `base^(-2 i /
    /// head_dim)`.
    fn frequency(&self, i: usize) -> f64 {
        libm::pow(self.base, -2.0 * i as f64 / self.head_dim as f64)
    }
}

/// How the keys of one layer are centred. Every vector has the rows of `attn_k`: `[kv_heads *
/// head_dim]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeyCentre {
    /// b - u, which the linear layer of the keys adds, if it has a bias.
    pub(super) rest: Option<Vec<f32>>,
    /// What `[1 - cos a, sin a]` of all angles of a head is multiplied by: `[kv_heads * head_dim,
    /// head_dim]`. Zeros without a bias.
    pub(super) turn: Vec<f32>,
    /// u - c.
    pub(super) shift: Vec<f32>,
}

/// The centred layers.
pub(super) type KeyCentres = BTreeMap<u32, KeyCentre>;

impl KeyCentre {
    /// Centres keys by the mean of their rotated `bias` over the positions `0..context`.
    pub(super) fn by_bias(keys: &Keys, context: u32, bias: &[f32]) -> Result<Self> {
        Self::new(
            keys,
            context,
            Some(bias),
            &mean_rotated(keys, context, bias),
        )
    }

    /// Centres keys, whose linear layer adds `bias`, by `centre`.
    pub(super) fn new(
        keys: &Keys,
        context: u32,
        bias: Option<&[f32]>,
        centre: &[f64],
    ) -> Result<Self> {
        let rows = keys.heads * keys.head_dim;
        let lengths = [Some(centre.len()), bias.map(<[f32]>::len)];
        if let Some(length) = lengths.into_iter().flatten().find(|length| *length != rows) {
            let message = format!("{length} values cannot centre or bias keys of {rows} rows");
            return Err(Problem::new(Code::GraphKeyCentre, message));
        }
        if let Some(value) = bias.into_iter().flatten().find(|value| !value.is_finite()) {
            return Err(Problem::new(
                Code::GraphKeyCentre,
                format!("a key bias is {value}"),
            ));
        }
        let dim = keys.head_dim;
        let mut centred = KeyCentre {
            rest: bias.map(<[f32]>::to_vec),
            turn: vec![0.0; rows * dim],
            shift: centre.iter().map(|centre| -centre as f32).collect(),
        };
        let slow =
            |row: &usize| f64::from(context.saturating_sub(1)) * keys.frequency(row % dim) <= SLOW;
        if let (Some(bias), Some(rest)) = (bias, &mut centred.rest) {
            for low in (0..rows).filter(|row| row % dim < dim / 2).filter(slow) {
                let (high, versine, sine) = (low + dim / 2, low % dim, low % dim + dim / 2);
                centred.turn[low * dim + versine] = -bias[low];
                centred.turn[low * dim + sine] = -bias[high];
                centred.turn[high * dim + versine] = -bias[high];
                centred.turn[high * dim + sine] = bias[low];
                for row in [low, high] {
                    rest[row] = 0.0;
                    centred.shift[row] = (f64::from(bias[row]) - centre[row]) as f32;
                }
            }
        }
        Ok(centred)
    }
}

/// The mean of `R_j bias` over the positions j from 0 to `context - 1`.
fn mean_rotated(keys: &Keys, context: u32, bias: &[f32]) -> Vec<f64> {
    let (dim, half) = (keys.head_dim, keys.head_dim / 2);
    let mean = |i: usize, of: fn(f64) -> f64| {
        let step = keys.frequency(i);
        (0..context)
            .map(|position| of(f64::from(position) * step))
            .sum::<f64>()
            / f64::from(context.max(1))
    };
    let turns: Vec<[f64; 2]> = (0..half)
        .map(|i| [mean(i, libm::cos), mean(i, libm::sin)])
        .collect();
    let mut means = vec![0.0; bias.len()];
    for row in (0..bias.len()).filter(|row| row % dim < half) {
        let [cos, sin] = turns[row % dim];
        let (low, high) = (f64::from(bias[row]), f64::from(bias[row + half]));
        means[row] = low * cos - high * sin;
        means[row + half] = high * cos + low * sin;
    }
    means
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One KV head of `dim`.
    fn keys(dim: usize) -> Keys {
        Keys {
            heads: 1,
            head_dim: dim,
            base: 10000.0,
        }
    }

    /// `R_position values` of one head.
    fn rotated(keys: &Keys, position: u32, values: &[f64]) -> Vec<f64> {
        let half = values.len() / 2;
        let turn = |i: usize| (f64::from(position) * keys.frequency(i)).sin_cos();
        let low = (0..half).map(|i| values[i] * turn(i).1 - values[i + half] * turn(i).0);
        let high = (0..half).map(|i| values[i + half] * turn(i).1 + values[i] * turn(i).0);
        low.chain(high).collect()
    }

    #[test]
    fn a_centred_key_is_the_rotated_key_less_its_centre() {
        let (keys, context) = (keys(8), 64);
        // Columns 0 and 4 turn by 1 a position, 3 and 7 by 0.001.
        let bias = [300.0, 2.0, -1.0, -250.0, 5.0, 0.0, 3.0, 358.0];
        let centre = KeyCentre::by_bias(&keys, context, &bias).unwrap();
        let rest = centre.rest.unwrap();
        assert_eq!(
            rest,
            [300.0, 2.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0],
            "what turns fast is not split"
        );
        let product = [0.5, -0.25, 1.0, 0.125, -2.0, 0.75, 0.0, 1.5];
        let mean = mean_rotated(&keys, context, &bias);
        for position in [0, 1, 17, 63] {
            let whole: Vec<f64> = product
                .iter()
                .zip(bias)
                .map(|(x, b)| x + f64::from(b))
                .collect();
            let expected: Vec<f64> = rotated(&keys, position, &whole)
                .iter()
                .zip(&mean)
                .map(|(k, c)| k - c)
                .collect();
            let small: Vec<f64> = product
                .iter()
                .zip(&rest)
                .map(|(x, b)| x + f64::from(*b))
                .collect();
            let angles = (0..4).map(|i| (f64::from(position) * keys.frequency(i)).sin_cos());
            let (sines, versines): (Vec<f64>, Vec<f64>) = angles
                .map(|(sin, cos)| (sin, sin * sin / (1.0 + cos.max(0.0))))
                .unzip();
            for (row, key) in rotated(&keys, position, &small).into_iter().enumerate() {
                let matrix = &centre.turn[row * 8..][..8];
                let turned: f64 = versines
                    .iter()
                    .chain(&sines)
                    .zip(matrix)
                    .map(|(x, w)| x * f64::from(*w))
                    .sum();
                let found = key + turned + f64::from(centre.shift[row]);
                assert!(
                    (found - expected[row]).abs() < 1e-4,
                    "{position} {row}: {found} {}",
                    expected[row]
                );
            }
            let slow = [expected[3], expected[7]];
            assert!(slow.iter().all(|key| key.abs() < 15.0), "{slow:?}");
        }
    }

    #[test]
    fn without_a_bias_nothing_turns() {
        let centre = KeyCentre::new(&keys(4), 16, None, &[1.0, -8.0, 8.0, 0.5]).unwrap();
        assert_eq!(
            centre,
            KeyCentre {
                rest: None,
                turn: vec![0.0; 16],
                shift: vec![-1.0, 8.0, -8.0, -0.5]
            }
        );
    }

    #[test]
    fn values_that_cannot_centre_are_refused() {
        let check = |centre: &[f64], bias: &[f32], expected: &str| {
            let problem = KeyCentre::new(&keys(4), 16, Some(bias), centre).unwrap_err();
            assert_eq!(problem.message, expected);
        };
        check(
            &[0.0; 3],
            &[0.0; 4],
            "3 values cannot centre or bias keys of 4 rows",
        );
        check(
            &[0.0; 4],
            &[0.0; 8],
            "8 values cannot centre or bias keys of 4 rows",
        );
        check(
            &[0.0; 4],
            &[0.0, f32::INFINITY, 0.0, 0.0],
            "a key bias is inf",
        );
    }

    #[test]
    fn heads_that_turn_in_part_are_refused() {
        let spec = DecoderSpec::tiny();
        let mut rotary = spec.layers[0].attention.rotary.clone().unwrap();
        assert!(Keys::new(&spec, &rotary).is_ok());
        rotary.dims = 2;
        assert_eq!(
            Keys::new(&spec, &rotary).unwrap_err().message,
            "key centring does not support RoPE of 2 of 4 columns"
        );
    }
}
