//! The measured tensors as items of a knapsack problem.

use super::budgets::{Budgets, Choice, Sums};
#[cfg(test)]
use super::samples;
use super::times::Times;
use crate::artifact::sensitivity::{Cost, TensorCosts};
use crate::base::Result;

/// Tensors, and bytes, time and error of each of their schemes.
pub(super) struct Measured<'a> {
    pub(super) tensors: &'a [TensorCosts],
    /// In the order of the tensors and their costs. Without estimates, all times are 0.
    pub(super) items: Vec<Vec<Choice>>,
    /// The time of everything else in a decode call, if there are estimates.
    others_ns: Option<i64>,
}

impl<'a> Measured<'a> {
    pub(super) fn new(tensors: &'a [TensorCosts], times: Option<&Times>) -> Result<Self> {
        let mut items = vec![];
        for tensor in tensors {
            let times = match times {
                Some(times) => times.of_schemes(tensor)?,
                None => vec![0; tensor.costs.len()],
            };
            let mut choices = vec![];
            for (cost, time_ns) in tensor.costs.iter().zip(times) {
                choices.push(Choice {
                    bytes: cost.bytes,
                    time_ns,
                    error: cost.kld,
                });
            }
            items.push(choices);
        }
        Ok(Measured {
            tensors,
            items,
            others_ns: times.map(|times| times.others_ns(tensors)),
        })
    }

    /// The budgets of the measured tensors. `None` if everything else takes more than `decode_ms`.
    pub(super) fn budgets(&self, bytes: Option<u64>, decode_ms: Option<f64>) -> Option<Budgets> {
        let mut budgets = Budgets {
            bytes,
            time_ns: None,
        };
        if let (Some(others_ns), Some(decode_ms)) = (self.others_ns, decode_ms) {
            let spare = ((decode_ms * 1e6).round() as i64).saturating_sub(others_ns);
            budgets.time_ns = Some(u64::try_from(spare).ok()?);
        }
        Some(budgets)
    }

    /// The expected time of a decode call, in microseconds, if there are estimates.
    pub(super) fn decode_us(&self, sums: &Sums) -> Option<f64> {
        let ns = self.others_ns?.saturating_add(sums.time_ns as i64);
        Some(ns as f64 / 1000.0)
    }

    /// The costs of the chosen schemes, in the order of the tensors.
    pub(super) fn costs(&self, chosen: &[usize]) -> impl Iterator<Item = &'a Cost> {
        let tensors = self.tensors.iter().zip(chosen);
        tensors.map(|(tensor, &index)| &tensor.costs[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::estimate::ModelEstimate;
    use samples::{estimate, tensors};

    #[test]
    fn estimates_that_do_not_fit_are_problems() {
        let native = estimate("qcs9075", "native", 300.0);
        let message = |estimates: &[ModelEstimate]| -> String {
            let times = Times::of(estimates);
            match times.and_then(|times| Measured::new(&tensors(), Some(&times)).map(|_| ())) {
                Ok(()) => "no problem".into(),
                Err(problem) => problem.message,
            }
        };
        let lpbq = |soc| estimate(soc, "lpbq-64", 100.0);
        assert_eq!(message(&[native.clone(), lpbq("qcs9075")]), "no problem");
        assert_eq!(
            message(&[native.clone(), lpbq("sa8797p")]),
            "`estimates` are for two chips, qcs9075 and sa8797p"
        );
        assert_eq!(
            message(std::slice::from_ref(&native)),
            "no estimate has `blk.0.attn_q.weight` in the scheme `lpbq-64`"
        );
        let mut without = lpbq("qcs9075");
        without.graphs.get_mut("decode").unwrap()[0].layers.clear();
        assert_eq!(
            message(&[native.clone(), without]),
            "number 2 of `estimates` has no layers"
        );
        let mut sample = native;
        sample.sums.clear();
        assert_eq!(
            message(&[sample]),
            "the first of `estimates` has no time of the whole decode graph"
        );
    }
}
