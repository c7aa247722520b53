//! Key centring: a fixed vector c is subtracted from every rotated key of a KV head.
//!
//! Softmax does not change when a constant is added to a row of scores, and
//! `q (k - c) = q k - q c`, so this only changes the range of keys and scores. Qwen2 models have
//! key biases of several hundred: without centring, real scores are below those of masked columns,
//! and the step of an fp16 score is 8.
//!
//! The subtraction must come before a large key is rounded to fp16, so the bias b is split:
//! `b = (b - u) + u` with u = b where columns rotate slowly, and u = 0 elsewhere. R_j is the
//! rotation at position j. It rotates columns i and i + n/2 by the angle `a = j * frequency_i`:
//!
//! ```text
//! R_j (W x + b) - c = R_j (W x + (b - u)) + (R_j - 1) u + (u - c)
//! ((R_j - 1) u)_low  = (1 - cos a) (-u_low)  + sin a (-u_high)
//! ((R_j - 1) u)_high = (1 - cos a) (-u_high) + sin a u_low
//! 1 - cos a = sin^2 a / (1 + cos a)
//! ```
//!
//! The last form keeps its digits in fp16 where cos a is nearly 1: the large biases of these models
//! are in the slowest columns. So `(R_j - 1) u + (u - c)` is a linear layer of `[1 - cos, sin]` of
//! a position, whose bias is `u - c`.

use std::collections::BTreeMap;

use crate::base::{Code, Problem, Result};
use crate::model::decoder::{DecoderSpec, Rotary, not_supported};

/// Columns that rotate further than this within the context, in radians, are not split: their
/// values are far from their mean, so that no constant makes them small.
const SLOW: f64 = 1.0;

/// The subject of the problems of unsupported parts.
pub(super) const CENTRING: &str = "key centring";

/// The shape and rotation of the keys of a layer.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    heads: usize,
    head_dim: usize,
    base: f64,
    /// See [`Rotary::divisors`].
    divisors: Vec<f64>,
}

impl Keys {
    /// The keys of a layer of `model` with this RoPE. Refused: heads of which some columns are not
    /// rotated.
    pub(super) fn new(model: &DecoderSpec, rotary: &Rotary, context: u32) -> Result<Self> {
        let Rotary {
            // `requant` writes the rows of all files in half-split order.
            layout: _,
            dims,
            base,
            // It is in the divisors.
            scaling: _,
            magnitude,
        } = rotary;
        if let Some(magnitude) = magnitude {
            // The graph computes `1 - cos` from the cosines that the host feeds.
            let part = format!("RoPE whose cosines and sines are multiplied by {magnitude}");
            return Err(not_supported(CENTRING, part).help("set `key_centre = \"none\"`"));
        }
        if *dims != model.head_dim {
            let part = format!("RoPE of {dims} of {} columns", model.head_dim);
            return Err(not_supported(CENTRING, part).help("set `key_centre = \"none\"`"));
        }
        Ok(Keys {
            heads: model.kv_heads as usize,
            head_dim: model.head_dim as usize,
            base: f64::from(*base),
            divisors: rotary.divisors(context),
        })
    }

    /// The angle between two positions of column `i` of a head: `base^(-2 i / head_dim)`, divided by
    /// its divisor.
    fn frequency(&self, i: usize) -> f64 {
        libm::pow(self.base, -2.0 * i as f64 / self.head_dim as f64) / self.divisors[i]
    }

    /// Whether column `i` of a head rotates slowly enough to be split.
    fn is_slow(&self, i: usize, context: u32) -> bool {
        f64::from(context.saturating_sub(1)) * self.frequency(i) <= SLOW
    }
}

/// How the keys of one layer are centred. Every vector has the rows of `attn_k`: `[kv_heads *
/// head_dim]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeyCentre {
    /// b - u: the bias of the linear layer of the keys, if it has one.
    pub(super) rest: Option<Vec<f32>>,
    /// The matrix that maps `[1 - cos a, sin a]` of all angles of a head to `(R_j - 1) u`:
    /// `[kv_heads * head_dim, head_dim]`. Zeros without a bias.
    pub(super) rotation: Vec<f32>,
    /// u - c.
    pub(super) shift: Vec<f32>,
}

/// The centred layers.
pub(super) type KeyCentres = BTreeMap<u32, KeyCentre>;

impl KeyCentre {
    /// Centres keys by the mean of their rotated `bias` over the positions `0..context`.
    pub(super) fn by_bias(keys: &Keys, context: u32, bias: &[f32]) -> Result<Self> {
        let centre = mean_rotated(keys, context, bias);
        Self::new(keys, context, Some(bias), &centre)
    }

    /// Centres keys, whose linear layer adds `bias`, by `centre`.
    pub(super) fn new(
        keys: &Keys,
        context: u32,
        bias: Option<&[f32]>,
        centre: &[f64],
    ) -> Result<Self> {
        let dim = keys.head_dim;
        let rows = keys.heads * dim;
        check_length(centre.len(), rows)?;
        let mut centred = KeyCentre {
            rest: None,
            rotation: vec![0.0; rows * dim],
            shift: centre.iter().map(|centre| -centre as f32).collect(),
        };
        let Some(bias) = bias else {
            return Ok(centred);
        };
        check_length(bias.len(), rows)?;
        for value in bias {
            if !value.is_finite() {
                let message = format!("a key bias is {value}");
                return Err(Problem::new(Code::GraphKeyCentre, message));
            }
        }
        let mut rest = bias.to_vec();
        for low in 0..rows {
            let column = low % dim;
            if column >= dim / 2 || !keys.is_slow(column, context) {
                continue;
            }
            let (high, versine, sine) = (low + dim / 2, column, column + dim / 2);
            centred.rotation[low * dim + versine] = -bias[low];
            centred.rotation[low * dim + sine] = -bias[high];
            centred.rotation[high * dim + versine] = -bias[high];
            centred.rotation[high * dim + sine] = bias[low];
            for row in [low, high] {
                rest[row] = 0.0;
                centred.shift[row] = (f64::from(bias[row]) - centre[row]) as f32;
            }
        }
        centred.rest = Some(rest);
        Ok(centred)
    }
}

fn check_length(length: usize, rows: usize) -> Result<()> {
    if length == rows {
        return Ok(());
    }
    let message = format!("{length} values cannot centre or bias keys of {rows} rows");
    Err(Problem::new(Code::GraphKeyCentre, message))
}

/// The mean of `R_j bias` over the positions j from 0 to `context - 1`.
fn mean_rotated(keys: &Keys, context: u32, bias: &[f32]) -> Vec<f64> {
    let (dim, half) = (keys.head_dim, keys.head_dim / 2);
    let mut rotations = vec![];
    for i in 0..half {
        let frequency = keys.frequency(i);
        let cos = mean_over_positions(context, frequency, libm::cos);
        let sin = mean_over_positions(context, frequency, libm::sin);
        rotations.push((cos, sin));
    }
    let mut means = vec![0.0; bias.len()];
    for row in 0..bias.len() {
        if row % dim >= half {
            continue;
        }
        let (cos, sin) = rotations[row % dim];
        let (low, high) = (f64::from(bias[row]), f64::from(bias[row + half]));
        means[row] = low * cos - high * sin;
        means[row + half] = high * cos + low * sin;
    }
    means
}

/// The mean of `of(position * frequency)` over the positions `0..context`.
fn mean_over_positions(context: u32, frequency: f64, of: fn(f64) -> f64) -> f64 {
    let mut sum = 0.0;
    for position in 0..context {
        sum += of(f64::from(position) * frequency);
    }
    sum / f64::from(context.max(1))
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
            divisors: vec![1.0; dim / 2],
        }
    }

    /// `R_position values` of one head.
    fn rotated(keys: &Keys, position: u32, values: &[f64]) -> Vec<f64> {
        let half = values.len() / 2;
        let mut rotated = vec![0.0; values.len()];
        for i in 0..half {
            let (sin, cos) = (f64::from(position) * keys.frequency(i)).sin_cos();
            rotated[i] = values[i] * cos - values[i + half] * sin;
            rotated[i + half] = values[i + half] * cos + values[i] * sin;
        }
        rotated
    }

    #[test]
    fn a_centred_key_is_the_rotated_key_minus_its_centre() {
        let (keys, context) = (keys(8), 64);
        // Columns 0 and 4 rotate by 1 a position, 3 and 7 by 0.001.
        let bias = [300.0, 2.0, -1.0, -250.0, 5.0, 0.0, 3.0, 358.0];
        let centre = KeyCentre::by_bias(&keys, context, &bias).unwrap();
        let rest = centre.rest.unwrap();
        assert_eq!(
            rest,
            [300.0, 2.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0],
            "fast columns are not split"
        );
        let product = [0.5, -0.25, 1.0, 0.125, -2.0, 0.75, 0.0, 1.5];
        let mean = mean_rotated(&keys, context, &bias);
        for position in [0, 1, 17, 63] {
            let (mut biased, mut split) = (product, product);
            for row in 0..8 {
                biased[row] += f64::from(bias[row]);
                split[row] += f64::from(rest[row]);
            }
            let expected = rotated(&keys, position, &biased);
            let split = rotated(&keys, position, &split);
            let mut versines_and_sines = [0.0; 8];
            for i in 0..4 {
                let (sin, cos) = (f64::from(position) * keys.frequency(i)).sin_cos();
                versines_and_sines[i] = sin * sin / (1.0 + cos.max(0.0));
                versines_and_sines[i + 4] = sin;
            }
            for row in 0..8 {
                let mut found = split[row] + f64::from(centre.shift[row]);
                for (column, value) in versines_and_sines.iter().enumerate() {
                    found += value * f64::from(centre.rotation[row * 8 + column]);
                }
                let expected = expected[row] - mean[row];
                assert!(
                    (found - expected).abs() < 1e-4,
                    "{position} {row}: {found} {expected}"
                );
                if row == 3 || row == 7 {
                    assert!(expected.abs() < 15.0, "a slow column: {expected}");
                }
            }
        }
    }

    #[test]
    fn without_a_bias_the_rotation_is_zero() {
        let centre = KeyCentre::new(&keys(4), 16, None, &[1.0, -8.0, 8.0, 0.5]).unwrap();
        assert_eq!(
            centre,
            KeyCentre {
                rest: None,
                rotation: vec![0.0; 16],
                shift: vec![-1.0, 8.0, -8.0, -0.5]
            }
        );
    }

    #[test]
    fn wrong_lengths_and_values_are_refused() {
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
    fn partly_rotated_heads_are_refused() {
        let spec = DecoderSpec::tiny();
        let mut rotary = spec.layers[0].attention.rotary.clone().unwrap();
        assert!(Keys::new(&spec, &rotary, 64).is_ok());
        rotary.dims = 2;
        assert_eq!(
            Keys::new(&spec, &rotary, 64).unwrap_err().message,
            "key centring does not support RoPE of 2 of 4 columns"
        );
    }
}
