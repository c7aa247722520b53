//! The time of each tensor in each scheme, from estimates with `layers`.
//!
//! A layer in the whole graph takes more or less time than alone: its weights are read while
//! something else computes, or it brings conversions of its own. So the layers of each further graph
//! whose schemes are new are scaled: with everything else as in the graphs before, they take the time
//! of the whole further graph.

use std::collections::BTreeMap;

#[cfg(test)]
use super::samples;
use crate::artifact::context::DECODE;
use crate::artifact::estimate::{LayerEstimate, ModelEstimate};
use crate::artifact::sensitivity::TensorCosts;
use crate::base::{Code, Problem, Result};

/// How long the decode call of a model takes, and each of its linear layers alone. The graph of the
/// first estimate is the model; other graphs give the times of its layers in other schemes.
pub(super) struct Times {
    /// A decode call of the model.
    decode_ns: u64,
    /// The layers of the model as they are there, by tensor.
    own: BTreeMap<String, u64>,
    /// By tensor and scheme, scaled.
    schemes: BTreeMap<String, BTreeMap<String, u64>>,
}

impl Times {
    /// From `estimates`, all for one chip.
    pub(super) fn of(estimates: &[ModelEstimate]) -> Result<Self> {
        let Some(first) = estimates.first() else {
            return Err(problem("there is no estimate".into()));
        };
        let Some(decode) = first.sums.get(DECODE) else {
            let message = "the first of `estimates` has no time of the whole decode graph";
            return Err(problem(message.into()).help("estimate `decode`, without `sample`"));
        };
        let mut times = Times {
            decode_ns: decode.time_us.saturating_mul(1000),
            own: layer_times(first),
            schemes: BTreeMap::new(),
        };
        for (index, estimate) in estimates.iter().enumerate() {
            if estimate.soc != first.soc {
                let (a, b) = (&first.soc, &estimate.soc);
                return Err(problem(format!(
                    "`estimates` are for two chips, {a} and {b}"
                )));
            }
            let layers = estimate.layers();
            if layers.is_empty() {
                let message = format!("number {} of `estimates` has no layers", index + 1);
                return Err(problem(message).help("give the stage `layers = true`"));
            }
            let scale = times.scale(estimate, &layers);
            for (tensor, layer) in layers {
                if let Some(scheme) = &layer.scheme {
                    let schemes = times.schemes.entry(tensor.into()).or_default();
                    let time_ns = (nanoseconds(layer) as f64 * scale).round() as u64;
                    // Of two estimates of the same scheme, the first counts.
                    schemes.entry(scheme.clone()).or_insert(time_ns);
                }
            }
        }
        Ok(times)
    }

    /// How much longer than alone the `layers` of `estimate` take in their graph: those in schemes
    /// that no estimate before it has. All else takes the time it is known to take, so it is 1 for
    /// the first estimate. 1 also for one of another set of layers.
    fn scale(&self, estimate: &ModelEstimate, layers: &BTreeMap<&str, &LayerEstimate>) -> f64 {
        let own = self.own.keys().map(String::as_str);
        let Some(decode) = estimate.sums.get(DECODE) else {
            return 1.0;
        };
        let (mut new, mut known) = (0.0, 0.0);
        for (tensor, layer) in layers {
            let scheme = layer.scheme.as_deref();
            match scheme.and_then(|scheme| self.in_scheme(tensor, scheme)) {
                Some(time_ns) => known += time_ns as f64,
                None => new += nanoseconds(layer) as f64,
            }
        }
        if !own.eq(layers.keys().copied()) || new == 0.0 {
            return 1.0;
        }
        let own: u64 = self.own.values().sum();
        let others = self.decode_ns as f64 - own as f64;
        ((decode.time_us as f64 * 1000.0 - others - known) / new).max(0.0)
    }

    /// The time of `tensor` in `scheme`, if an estimate has it.
    fn in_scheme(&self, tensor: &str, scheme: &str) -> Option<u64> {
        self.schemes.get(tensor)?.get(scheme).copied()
    }

    /// The times of the schemes of `costs`, in their order. A tensor that is no linear layer of the
    /// model, as an embedding or a head on the CPU, takes none.
    pub(super) fn of_schemes(&self, costs: &TensorCosts) -> Result<Vec<u64>> {
        let tensor = &costs.tensor;
        if !self.own.contains_key(tensor) {
            return Ok(vec![0; costs.costs.len()]);
        }
        let mut times = vec![];
        for cost in &costs.costs {
            let scheme = &cost.scheme;
            let Some(time_ns) = self.in_scheme(tensor, scheme) else {
                let message = format!("no estimate has `{tensor}` in the scheme `{scheme}`");
                return Err(problem(message).help(
                    "`estimates` must have each tensor in each scheme that the `sensitivity` stage \
                     measured, all with `layers = true`",
                ));
            };
            times.push(time_ns);
        }
        Ok(times)
    }

    /// The time of a decode call without the layers of the measured `tensors`. Layers alone can
    /// take longer than together, so it can be below 0.
    pub(super) fn others_ns(&self, tensors: &[TensorCosts]) -> i64 {
        let mut others = self.decode_ns as i64;
        for costs in tensors {
            if let Some(&own) = self.own.get(&costs.tensor) {
                others = others.saturating_sub(own as i64);
            }
        }
        others
    }
}

/// The time of each layer of `estimate` alone, by tensor.
fn layer_times(estimate: &ModelEstimate) -> BTreeMap<String, u64> {
    let layers = estimate.layers().into_iter();
    layers
        .map(|(tensor, layer)| (tensor.into(), nanoseconds(layer)))
        .collect()
}

fn nanoseconds(layer: &LayerEstimate) -> u64 {
    (layer.time_us * 1000.0).round() as u64
}

fn problem(message: String) -> Problem {
    Problem::new(Code::MixedPrecisionEstimate, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use samples::{estimate, tensors};

    #[test]
    fn layers_take_the_time_of_their_graph() {
        let native = estimate("qcs9075", "native", 300.0);
        let time_of = |lpbq: &ModelEstimate| {
            let times = Times::of(&[native.clone(), lpbq.clone()]).unwrap();
            times.of_schemes(&tensors()[0]).unwrap()
        };
        let mut lpbq = estimate("qcs9075", "lpbq-64", 100.0);
        assert_eq!(
            time_of(&lpbq),
            [300_000, 100_000],
            "1000 us, 500 of them layers"
        );
        lpbq.sums.get_mut(DECODE).unwrap().time_us = 1100;
        assert_eq!(time_of(&lpbq), [300_000, 120_000], "600 us of layers");
        // Only layers in a new scheme are scaled: here blk.0.attn_q, among 500 + 1200 us of others.
        let mut layer = lpbq.graphs["decode"][0].layers["blk.0.attn_q.weight"].clone();
        layer.time_us = 100.0;
        let mut mixed = native.clone();
        let graph = &mut mixed.graphs.get_mut(DECODE).unwrap()[0];
        graph.layers.insert("blk.0.attn_q.weight".into(), layer);
        mixed.sums.get_mut(DECODE).unwrap().time_us = 1850;
        assert_eq!(time_of(&mixed), [300_000, 150_000]);
        lpbq.sums.clear();
        assert_eq!(time_of(&lpbq), [300_000, 100_000], "a sample of layers");
    }
}
