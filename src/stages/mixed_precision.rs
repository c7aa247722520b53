//! `mixed-precision`: chooses a scheme for each tensor, so that the model loses least within a
//! budget of bytes.
//!
//! The assignment solves a knapsack problem over the measured costs, which are assumed to add up.
//! It is written as the overrides of a `requant` stage, to be read, pinned and edited; `requant`
//! with `scheme = "auto"` takes them as they are.

mod groups;
mod knapsack;

use std::collections::BTreeMap;
use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{InputSpec, Inputs, Job, Order, Outputs, PartName, StageSpec, TypedStage};
use crate::artifact::assignment::{AssignmentFacts, ChosenScheme, OVERRIDES};
use crate::artifact::sensitivity::{Cost, Measured, TensorCosts};
use crate::base::{self, CanonJson, Code, Problem, Result, bytes};
use groups::tensor_costs;
use knapsack::Choice;

/// The parameters.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Bytes that the measured tensors may take together: codes, scales and offsets.
    bytes: u64,
}

/// The stage.
pub struct MixedPrecision;

impl TypedStage for MixedPrecision {
    type Params = Params;
    type Order = Params;

    const SPEC: StageSpec = StageSpec {
        kind: "mixed-precision",
        version: 1,
        summary: "a scheme for each tensor, so that the model loses least within a budget of bytes",
        output: "assignment",
        inputs: &[InputSpec {
            name: "sensitivity",
            meaning: "The measured cost of each scheme for each tensor.",
            accepts: &["sensitivity"],
            required: true,
            many: false,
        }],
        params: &["bytes"],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let mut order = Order::new("", params);
        for (name, part) in &inputs.one("sensitivity")?.parts {
            order = order.input(name.as_str(), part);
        }
        Ok(vec![order])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let mut measured: Vec<Measured> = vec![];
        for (_, input) in job.inputs() {
            measured.push(input.facts.read()?);
        }
        let assignment = assign(&tensor_costs(measured), params.bytes)?;
        let text = render(&assignment, params.bytes);
        let part = job.write(text.as_bytes(), CanonJson::of(&assignment)?)?;
        Ok([(PartName::new(OVERRIDES)?, part)].into())
    }
}

/// The cheapest assignment of schemes that takes at most `budget` bytes.
fn assign(tensors: &[TensorCosts], budget: u64) -> Result<AssignmentFacts> {
    let mut items: Vec<Vec<Choice>> = vec![];
    for tensor in tensors {
        let mut choices = vec![];
        for cost in &tensor.costs {
            choices.push(Choice {
                bytes: cost.bytes,
                error: cost.kld,
            });
        }
        items.push(choices);
    }
    let Some(chosen) = knapsack::choose(&items, budget) else {
        return Err(over_budget(&items, budget));
    };
    let (mut picked, mut bytes, mut kld) = (vec![], 0, 0.0);
    for (tensor, index) in tensors.iter().zip(chosen) {
        let cost = &tensor.costs[index];
        bytes += cost.bytes;
        kld += cost.kld;
        picked.push((tensor.tensor.as_str(), cost));
    }
    Ok(AssignmentFacts {
        overrides: overrides(&picked),
        bytes,
        kld,
    })
}

fn over_budget(items: &[Vec<Choice>], budget: u64) -> Problem {
    let mut least = 0u64;
    for item in items {
        let smallest = item.iter().map(|choice| choice.bytes).min();
        least = least.saturating_add(smallest.unwrap_or(0));
    }
    let message = format!(
        "{} tensors do not fit into {budget} bytes: they take {least} at least",
        items.len()
    );
    Problem::new(Code::MixedPrecisionBudget, message)
        .help("raise `bytes`, or give `sensitivity` a candidate of a smaller scheme")
}

/// For each kind of tensor its most frequent scheme as a pattern over all layers, then the layers
/// that differ.
fn overrides(picked: &[(&str, &Cost)]) -> Vec<ChosenScheme> {
    let mut kinds: BTreeMap<String, Vec<(&str, &str)>> = BTreeMap::new();
    for (tensor, cost) in picked {
        let tensors = kinds.entry(layer_pattern(tensor)).or_default();
        tensors.push((tensor, &cost.scheme));
    }
    let mut overrides = vec![];
    for (pattern, mut tensors) in kinds {
        tensors.sort_by_key(|(tensor, _)| base::natural_order(tensor));
        let usual = most_frequent(&tensors);
        overrides.push(ChosenScheme {
            pattern,
            scheme: usual.into(),
        });
        for (tensor, scheme) in tensors {
            if scheme != usual {
                overrides.push(ChosenScheme {
                    pattern: tensor.into(),
                    scheme: scheme.into(),
                });
            }
        }
    }
    overrides
}

/// The scheme of most of `tensors`; among equals, the first by name.
fn most_frequent<'a>(tensors: &[(&str, &'a str)]) -> &'a str {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, scheme) in tensors {
        *counts.entry(scheme).or_default() += 1;
    }
    let (mut most_frequent, mut most) = ("", 0);
    for (scheme, count) in counts {
        if count > most {
            (most_frequent, most) = (scheme, count);
        }
    }
    most_frequent
}

/// The pattern of a tensor in all layers: `blk.*.attn_q.weight` for `blk.3.attn_q.weight`.
fn layer_pattern(tensor: &str) -> String {
    let mut components = vec![];
    for component in tensor.split('.') {
        let is_number = component.parse::<u32>().is_ok();
        components.push(if is_number { "*" } else { component });
    }
    components.join(".")
}

/// The overrides as text for a plan.
fn render(assignment: &AssignmentFacts, budget: u64) -> String {
    let mut text = format!(
        "# {} of {}; expected KL divergence {:.2e} nats, the sum of what each tensor was measured \
         to cost.\n# These lines can stand under a `requant` stage, pinned and edited; the last \
         that matches a tensor wins.\noverride = [\n",
        bytes(assignment.bytes),
        bytes(budget),
        assignment.kld
    );
    for ChosenScheme { pattern, scheme } in &assignment.overrides {
        let _ = writeln!(text, "    {{ match = {pattern:?}, scheme = {scheme:?} }},");
    }
    text + "]\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, native: f64, lpbq: f64) -> TensorCosts {
        let cost = |scheme: &str, bytes, kld| Cost {
            scheme: scheme.into(),
            bytes,
            kld,
        };
        TensorCosts {
            tensor: name.into(),
            costs: vec![cost("native", 450, native), cost("lpbq-64", 420, lpbq)],
        }
    }

    #[test]
    fn the_least_sensitive_tensors_get_the_smaller_scheme() {
        let names = [
            "blk.0.attn_q.weight",
            "blk.1.attn_q.weight",
            "blk.2.attn_q.weight",
            "blk.0.ffn_up.weight",
        ];
        let klds = [3e-3, 1e-3, 2e-3, 5e-4];
        let tensors: Vec<_> = (0..4).map(|i| tensor(names[i], 0.0, klds[i])).collect();
        let assignment = assign(&tensors, 1740).unwrap();
        assert_eq!((assignment.bytes, assignment.kld), (1740, 1.5e-3));
        assert_eq!(
            render(&assignment, 1750),
            "# 1.7 kB of 1.8 kB; expected KL divergence 1.50e-3 nats, the sum of what each tensor \
             was measured to cost.\n# These lines can stand under a `requant` stage, pinned and \
             edited; the last that matches a tensor wins.\noverride = [\n    { match = \
             \"blk.*.attn_q.weight\", scheme = \"native\" },\n    { match = \
             \"blk.1.attn_q.weight\", scheme = \"lpbq-64\" },\n    { match = \
             \"blk.*.ffn_up.weight\", scheme = \"lpbq-64\" },\n]\n"
        );
        let problem = assign(&tensors, 1600).unwrap_err();
        assert_eq!(
            problem.message,
            "4 tensors do not fit into 1600 bytes: they take 1680 at least"
        );
    }
}
