//! The output of `evaluate-layers`: how close shards come to the graph.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::decoder::shards::layer_range;
use crate::model::quant::ErrorSum;

/// The stage's only part.
pub const LAYERS: &str = "layers.json";

/// `layers.json`: the scores of the shards, in the order of the layers.
#[derive(Serialize, Deserialize)]
pub struct Computed {
    /// The shards that were run.
    pub shards: Vec<ShardScore>,
}

/// How close a shard comes to the graph.
#[derive(Serialize, Deserialize)]
pub struct ShardScore {
    /// Its first layer.
    pub first: u32,
    /// The layer after its last.
    pub end: u32,
    /// Its outputs.
    pub values: BTreeMap<String, ValueScore>,
}

/// How close a value comes to the graph's.
#[derive(Serialize, Deserialize)]
pub struct ValueScore {
    /// Signal to noise in dB; `None` if all elements are equal, or if one is not finite.
    pub sqnr_db: Option<f64>,
    /// The largest absolute error.
    pub max_error: f64,
    /// The largest magnitude in the graph.
    pub largest: f32,
    /// Number of elements that are infinite or NaN.
    pub non_finite: u64,
}

impl ShardScore {
    /// The signal to noise of its worst value in dB; minus infinity if an element is not finite.
    pub fn worst_db(&self) -> f64 {
        let mut worst = f64::INFINITY;
        for value in self.values.values() {
            if value.non_finite > 0 {
                return f64::NEG_INFINITY;
            }
            worst = worst.min(value.sqnr_db.unwrap_or(f64::INFINITY));
        }
        worst
    }
}

impl fmt::Display for Computed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for ShardScore { first, end, values } in &self.shards {
            let layers = layer_range(*first, *end);
            for (
                name,
                ValueScore {
                    sqnr_db,
                    max_error,
                    largest,
                    non_finite,
                },
            ) in values
            {
                let db = match sqnr_db {
                    Some(db) => format!("{db:.1} dB"),
                    None => "exact".into(),
                };
                write!(
                    f,
                    "{layers:16} {name:20} {db:>9}, largest error {max_error:.2e} of {largest:.2e}"
                )?;
                if *non_finite > 0 {
                    write!(f, ", {non_finite} not finite")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

impl ValueScore {
    /// Compares the elements `found` with those `expected`.
    pub fn of(expected: &[f32], found: &[f32]) -> Self {
        let error = ErrorSum::of(expected, found);
        let (mut non_finite, mut largest) = (0, 0.0f32);
        for element in found {
            non_finite += u64::from(!element.is_finite());
        }
        for element in expected {
            largest = largest.max(element.abs());
        }
        let max_error = error.max_error();
        ValueScore {
            sqnr_db: error.sqnr_db().filter(|db| db.is_finite()),
            max_error: if max_error.is_finite() {
                max_error
            } else {
                f64::MAX
            },
            largest,
            non_finite,
        }
    }
}
