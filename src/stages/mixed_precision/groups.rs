//! Computes the costs of tensors from the measured costs of groups of them.
//!
//! Every tensor of a layer is in two groups: its layer and its kind. Its cost is taken to be
//! proportional to the rounding noise in its output, with one factor for its layer and one for its
//! kind. The factors are fitted so that the costs of each group add up to what was measured
//! (iterative proportional fitting: Deming and Stephan, 1940).

use std::collections::BTreeMap;

use crate::artifact::sensitivity::{
    Cost, GroupCost, Measurement, StoredScheme, TensorCosts, TensorSchemes,
};

/// How often all groups are fitted. The costs converge geometrically.
const ROUNDS: usize = 100;

/// The least cost of a group, in nats: a smaller divergence is rounding noise of the measurement.
const LEAST_COST: f64 = 1e-9;

/// The costs of all tensors of `measured`, by name.
pub(super) fn tensor_costs(measured: Vec<Measurement>) -> Vec<TensorCosts> {
    let (mut costs, mut groups) = (vec![], vec![]);
    for measured in measured {
        match measured {
            Measurement::Tensor(tensor) => costs.push(tensor),
            Measurement::Group(group) => groups.push(group),
        }
    }
    costs.extend(spread(&groups));
    costs
}

/// The costs of the tensors of `groups`.
fn spread(groups: &[GroupCost]) -> Vec<TensorCosts> {
    let mut tensors: BTreeMap<&str, (&TensorSchemes, f64)> = BTreeMap::new();
    for schemes in groups.iter().flat_map(|group| &group.tensors) {
        // The first candidate is the one that was measured.
        let noise = schemes.candidates.first().map_or(0.0, noise);
        tensors.insert(&schemes.tensor, (schemes, noise));
    }
    for _ in 0..ROUNDS {
        for group in groups {
            let mut sum = 0.0;
            for schemes in &group.tensors {
                sum += tensors[schemes.tensor.as_str()].1;
            }
            for schemes in &group.tensors {
                if let Some((_, cost)) = tensors.get_mut(schemes.tensor.as_str())
                    && sum > 0.0
                {
                    *cost *= group.kld.max(LEAST_COST) / sum;
                }
            }
        }
    }
    let mut costs = vec![];
    for (schemes, cost) in tensors.into_values() {
        let measured = schemes.candidates.first().map_or(0.0, noise);
        let kld = |stored: &StoredScheme| {
            if measured > 0.0 {
                cost * noise(stored) / measured
            } else {
                0.0
            }
        };
        let all = [&schemes.own].into_iter().chain(&schemes.candidates);
        let all = all.map(|stored| Cost {
            scheme: stored.scheme.clone(),
            bytes: stored.bytes,
            kld: kld(stored),
        });
        costs.push(TensorCosts {
            tensor: schemes.tensor.clone(),
            costs: all.collect(),
        });
    }
    costs
}

/// The power of the rounding noise, relative to the signal.
fn noise(stored: &StoredScheme) -> f64 {
    match stored.sqnr_db {
        Some(db) => libm::pow(10.0, -db / 10.0),
        None => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_of_groups_are_spread_over_their_tensors() {
        let stored = |scheme: &str, bytes, sqnr_db| StoredScheme {
            scheme: scheme.into(),
            bytes,
            sqnr_db,
        };
        // Costs with one factor for each layer, one for each kind and the noise: 1e-2 for the
        // measured scheme, 1e-3 for the other one.
        let (layers, kinds) = ([1.0, 3.0], [0.2, 0.5, 0.3]);
        let schemes = |layer, kind| TensorSchemes {
            tensor: format!("blk.{layer}.kind{kind}"),
            own: stored("native", 9, None),
            candidates: vec![
                stored("lpbq-32", 4, Some(20.0)),
                stored("int8-channel", 8, Some(30.0)),
            ],
        };
        let mut groups = vec![];
        for (layer, factor) in layers.iter().enumerate() {
            groups.push(GroupCost {
                group: format!("blk.{layer}"),
                kld: *factor,
                tensors: (0..3).map(|kind| schemes(layer, kind)).collect(),
            });
        }
        for (kind, factor) in kinds.iter().enumerate() {
            groups.push(GroupCost {
                group: format!("kind{kind}"),
                kld: factor * layers.iter().sum::<f64>(),
                tensors: (0..2).map(|layer| schemes(layer, kind)).collect(),
            });
        }
        for tensor in spread(&groups) {
            let (layer, kind) = (&tensor.tensor[4..5], &tensor.tensor[10..]);
            let expected =
                layers[layer.parse::<usize>().unwrap()] * kinds[kind.parse::<usize>().unwrap()];
            let klds: Vec<f64> = tensor.costs.iter().map(|cost| cost.kld).collect();
            assert_eq!(klds[0], 0.0);
            assert!((klds[1] / expected - 1.0).abs() < 1e-9, "{tensor:?}");
            assert!((klds[2] / expected - 0.1).abs() < 1e-9, "{tensor:?}");
        }
    }

    #[test]
    fn the_costs_of_tensors_are_taken_as_they_are() {
        let tensor = TensorCosts {
            tensor: "output.weight".into(),
            costs: vec![],
        };
        let measured = vec![Measurement::Tensor(tensor.clone())];
        assert_eq!(tensor_costs(measured), [tensor]);
    }
}
