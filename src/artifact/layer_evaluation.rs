//! What `evaluate-layers` hands over.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::quant::ErrorSum;

/// The stage's only part.
pub const LAYERS: &str = "layers.json";

/// `layers.json`: what each shard made of what it was given, in the order of the layers.
#[derive(Serialize, Deserialize)]
pub struct Computed {
    /// Those that were run.
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
    /// Signal to noise in dB; none if all is equal, or if something is no number.
    pub sqnr_db: Option<f64>,
    /// The largest absolute error.
    pub max_error: f64,
    /// The largest magnitude in the graph.
    pub largest: f32,
    /// How many of its elements are no numbers.
    pub non_finite: u64,
}

impl ShardScore {
    /// The signal to noise of its worst value in dB; minus infinity where something is no number.
    pub fn worst_db(&self) -> f64 {
        let db = |value: &ValueScore| match value.non_finite {
            0 => value.sqnr_db.unwrap_or(f64::INFINITY),
            _ => f64::NEG_INFINITY,
        };
        self.values.values().map(db).fold(f64::INFINITY, f64::min)
    }
}

impl fmt::Display for Computed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for ShardScore { first, end, values } in &self.shards {
            let of = if end - first == 1 {
                format!("layer {first}")
            } else {
                format!("layers {first} to {}", end - 1)
            };
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
                let db = sqnr_db.map_or("exact".into(), |db| format!("{db:.1} dB"));
                write!(
                    f,
                    "{of:16} {name:20} {db:>9}, largest error {max_error:.2e} of {largest:.2e}"
                )?;
                writeln!(
                    f,
                    "{}",
                    if *non_finite == 0 {
                        String::new()
                    } else {
                        format!(", {non_finite} not finite")
                    }
                )?;
            }
        }
        Ok(())
    }
}

impl ValueScore {
    /// Compares what was `found` with what was `expected`.
    pub fn of(expected: &[f32], found: &[f32]) -> Self {
        let error = ErrorSum::of(expected, found);
        let non_finite = found.iter().filter(|value| !value.is_finite()).count() as u64;
        ValueScore {
            sqnr_db: error.sqnr_db().filter(|db| db.is_finite()),
            max_error: Some(error.max_error())
                .filter(|error| error.is_finite())
                .unwrap_or(f64::MAX),
            largest: expected
                .iter()
                .fold(0.0, |largest, value| largest.max(value.abs())),
            non_finite,
        }
    }
}
