//! The mean of each row of the rotated keys, layer by layer.

use std::collections::BTreeSet;

use crate::base::{Context, Problem, Result};
use crate::model::calibration::KeyMeans;
use crate::model::facts::in_layer;
use crate::model::onnx::proto::GraphProto;

/// Sums of keys as a graph gives them: `[1, kv_heads, tokens, head_dim]`.
pub(super) struct Keys {
    /// The value that holds them in each layer: the keys before they are centred, where they are.
    values: BTreeSet<String>,
    head_dim: usize,
    tokens: usize,
    sums: KeyMeans,
}

impl Keys {
    /// Of `graph`, whose heads have `head_dim` columns and whose calls take `tokens`.
    pub(super) fn new(graph: &GraphProto, head_dim: usize, tokens: usize) -> Self {
        let made: BTreeSet<&str> = graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
        let is_key = |name: &&str| matches!(in_layer(name), Some((_, "key")));
        let before = |name: &str| format!("{name}.rotated");
        let values = made.iter().copied().filter(is_key).map(|name| {
            let rotated = before(name);
            if made.contains(rotated.as_str()) { rotated } else { name.into() }
        });
        Keys { values: values.collect(), head_dim, tokens, sums: KeyMeans::new() }
    }

    /// Adds what `value` holds in a window, if it is of keys.
    pub(super) fn add(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        if !self.values.contains(value) {
            return Ok(());
        }
        let Some((layer, _)) = in_layer(value) else { return Ok(()) };
        let layer = layer.parse().context("kiln::calibrate::keys", || format!("read the layer of `{value}`"))?;
        let (dim, tokens) = (self.head_dim.max(1), self.tokens.max(1));
        let heads = elements.len() / (dim * tokens);
        if elements.len() != heads * dim * tokens {
            let message = format!("`{value}` has {} elements, no keys of {tokens} tokens", elements.len());
            return Err(Problem::new("kiln::calibrate::keys", message));
        }
        let sums = self.sums.entry(layer).or_insert_with(|| vec![0.0; heads * dim]);
        for (sums, head) in sums.chunks_exact_mut(dim).zip(elements.chunks_exact(dim * tokens)) {
            for key in head.chunks_exact(dim) {
                sums.iter_mut().zip(key).for_each(|(sum, key)| *sum += f64::from(*key));
            }
        }
        Ok(())
    }

    /// The means over `windows`.
    pub(super) fn means(self, windows: usize) -> KeyMeans {
        let count = (windows * self.tokens).max(1) as f64;
        let mean = |(layer, sums): (u32, Vec<f64>)| (layer, sums.into_iter().map(|sum| sum / count).collect());
        self.sums.into_iter().map(mean).collect()
    }
}
