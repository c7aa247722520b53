//! The mean of each row of the keys after RoPE, layer by layer.

use std::collections::BTreeMap;

use crate::base::{Code, Context, Problem, Result};
use crate::model::calibration::{KEY_SHIFT, KEY_TURN, KeyMeans};
use crate::model::facts::in_layer;
use crate::model::onnx::proto::{GraphProto, TensorProto};

/// The sums of the keys of a graph, which have the shape `[1, tokens, kv_heads, head_dim]`.
pub(super) struct KeySums {
    /// By the name of the value with the keys of a layer: the centre that the graph subtracts from
    /// them; empty if it subtracts none.
    centres: BTreeMap<String, Vec<f64>>,
    head_dim: usize,
    tokens: usize,
    sums: KeyMeans,
}

impl KeySums {
    /// For `graph`, whose heads have `head_dim` columns and whose calls have `tokens` tokens.
    pub(super) fn new(graph: &GraphProto, head_dim: usize, tokens: usize) -> Self {
        let mut constants: BTreeMap<&str, &TensorProto> = BTreeMap::new();
        for tensor in &graph.initializer {
            constants.insert(&tensor.name, tensor);
        }
        let mut centres = BTreeMap::new();
        for node in &graph.node {
            for name in &node.output {
                if matches!(in_layer(name), Some((_, "key"))) {
                    centres.insert(name.clone(), centre(name, &constants, head_dim));
                }
            }
        }
        KeySums {
            centres,
            head_dim,
            tokens,
            sums: KeyMeans::new(),
        }
    }

    /// Adds the elements of `value` in a window, if it is the keys of a layer.
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
        for keys in elements.chunks_exact((heads * dim).max(1)) {
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum += f64::from(*key);
            }
        }
        Ok(())
    }

    /// The means over `windows` of the keys before they are centred.
    pub(super) fn means(self, windows: usize) -> KeyMeans {
        let count = (windows * self.tokens).max(1) as f64;
        let mut means = self.sums;
        for sum in means.values_mut().flatten() {
            *sum /= count;
        }
        for (value, centre) in &self.centres {
            if let Some((layer, _)) = in_layer(value)
                && let Ok(layer) = layer.parse()
                && let Some(means) = means.get_mut(&layer)
            {
                for (mean, centre) in means.iter_mut().zip(centre) {
                    *mean += centre;
                }
            }
        }
        means
    }
}

/// The centre `c` that the graph subtracts from the keys `name`. The graph multiplies by a matrix
/// that contains `-u`, and adds `u - c`.
fn centre(name: &str, constants: &BTreeMap<&str, &TensorProto>, head_dim: usize) -> Vec<f64> {
    let shift = read_f32(constants, &format!("{name}.{KEY_SHIFT}"));
    let matrix = read_f32(constants, &format!("{name}.{KEY_TURN}"));
    let mut centre = vec![];
    for (row, shift) in shift.into_iter().enumerate() {
        let angle = row.checked_rem(head_dim / 2).unwrap_or(0);
        let element = matrix.get(row * head_dim + angle).unwrap_or(&0.0);
        centre.push(-shift - element);
    }
    centre
}

/// The numbers of the constant `name`; none if there is no such constant.
fn read_f32(constants: &BTreeMap<&str, &TensorProto>, name: &str) -> Vec<f64> {
    let Some(tensor) = constants.get(name) else {
        return vec![];
    };
    let mut numbers = vec![];
    for bytes in tensor.raw_data.as_chunks().0 {
        numbers.push(f64::from(f32::from_le_bytes(*bytes)));
    }
    numbers
}
