//! The mean of each row of the rotated keys, layer by layer.

use std::collections::BTreeMap;

use crate::base::{Code, Context, Problem, Result};
use crate::model::calibration::{KEY_SHIFT, KEY_TURN, KeyMeans};
use crate::model::facts::in_layer;
use crate::model::onnx::proto::{GraphProto, TensorProto};

/// Sums of keys as a graph gives them: `[1, kv_heads, tokens, head_dim]`.
pub(super) struct Keys {
    /// By the value that holds the keys of a layer: what the graph subtracts from them, if
    /// anything.
    centres: BTreeMap<String, Vec<f64>>,
    head_dim: usize,
    tokens: usize,
    sums: KeyMeans,
}

impl Keys {
    /// Of `graph`, whose heads have `head_dim` columns and whose calls take `tokens`.
    pub(super) fn new(graph: &GraphProto, head_dim: usize, tokens: usize) -> Self {
        let constants: BTreeMap<&str, &TensorProto> = graph
            .initializer
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        let numbers = |name: String| -> Vec<f64> {
            let bytes = constants
                .get(name.as_str())
                .map(|tensor| tensor.raw_data.as_chunks().0);
            bytes
                .into_iter()
                .flatten()
                .map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
                .collect()
        };
        let made = graph.node.iter().flat_map(|node| &node.output);
        let keys = made.filter(|name| matches!(in_layer(name), Some((_, "key"))));
        let half = head_dim / 2;
        // The graph adds u - c, and its matrix has -u: what it centres by is c.
        let centre = |name: &String| {
            let mut centre: Vec<f64> = numbers(format!("{name}.{KEY_SHIFT}"))
                .iter()
                .map(|shift| -shift)
                .collect();
            let turn = numbers(format!("{name}.{KEY_TURN}"));
            for (row, centre) in centre.iter_mut().enumerate() {
                let angle = row.checked_rem(half).unwrap_or(0);
                *centre -= turn.get(row * head_dim + angle).unwrap_or(&0.0);
            }
            (name.clone(), centre)
        };
        Keys {
            centres: keys.map(centre).collect(),
            head_dim,
            tokens,
            sums: KeyMeans::new(),
        }
    }

    /// Adds what `value` holds in a window, if it is of keys.
    pub(super) fn add(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        if !self.centres.contains_key(value) {
            return Ok(());
        }
        let Some((layer, _)) = in_layer(value) else {
            return Ok(());
        };
        let layer = layer.parse().context(Code::CalibrateKeys, || {
            format!("read the layer of `{value}`")
        })?;
        let (dim, tokens) = (self.head_dim.max(1), self.tokens.max(1));
        let heads = elements.len() / (dim * tokens);
        if elements.len() != heads * dim * tokens {
            let message = format!(
                "`{value}` has {} elements, no keys of {tokens} tokens",
                elements.len()
            );
            return Err(Problem::new(Code::CalibrateKeys, message));
        }
        let sums = self
            .sums
            .entry(layer)
            .or_insert_with(|| vec![0.0; heads * dim]);
        for (sums, head) in sums
            .chunks_exact_mut(dim)
            .zip(elements.chunks_exact(dim * tokens))
        {
            for key in head.chunks_exact(dim) {
                sums.iter_mut()
                    .zip(key)
                    .for_each(|(sum, key)| *sum += f64::from(*key));
            }
        }
        Ok(())
    }

    /// The means over `windows` of the keys as they were before any was centred.
    pub(super) fn means(self, windows: usize) -> KeyMeans {
        let count = (windows * self.tokens).max(1) as f64;
        let mut means = self.sums;
        means.values_mut().flatten().for_each(|sum| *sum /= count);
        for (value, centre) in &self.centres {
            let layer = in_layer(value).and_then(|(layer, _)| layer.parse().ok());
            let of_layer = layer.and_then(|layer: u32| means.get_mut(&layer));
            of_layer
                .into_iter()
                .flatten()
                .zip(centre)
                .for_each(|(mean, centre)| *mean += centre);
        }
        means
    }
}
