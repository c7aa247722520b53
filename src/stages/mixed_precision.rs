//! `mixed-precision`: a scheme for each tensor, so that the model loses least within a budget of
//! bytes.
//!
//! The assignment solves a knapsack over the measured costs, which are assumed to add up. It is
//! written as the overrides of a `requant` stage, to be read, pinned and edited; `requant` with
//! `scheme = "auto"` takes them as they are.

mod knapsack;

use std::collections::BTreeMap;
use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{InputSpec, Inputs, Job, Order, Outputs, PartName, StageSpec, TypedStage};
use crate::artifact::assignment::{AssignmentFacts, ChosenScheme, OVERRIDES};
use crate::artifact::sensitivity::{Cost, TensorCosts};
use crate::base::{self, CanonJson, Code, Problem, Result, bytes};
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
        let measured = &inputs.one("sensitivity")?.parts;
        let order = Order::new("", params);
        Ok(vec![measured.iter().fold(order, |order, (name, part)| {
            order.input(name.as_str(), part)
        })])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let tensors = job
            .inputs()
            .map(|(_, input)| input.facts.read())
            .collect::<Result<Vec<TensorCosts>>>()?;
        let choice = choose(&tensors, params.bytes)?;
        let part = job.write(
            render(&choice, params.bytes).as_bytes(),
            CanonJson::of(&choice)?,
        )?;
        Ok([(PartName::new(OVERRIDES)?, part)].into())
    }
}

fn choose(tensors: &[TensorCosts], budget: u64) -> Result<AssignmentFacts> {
    let option = |cost: &Cost| Choice {
        bytes: cost.bytes,
        error: cost.kld,
    };
    let items: Vec<Vec<Choice>> = tensors
        .iter()
        .map(|tensor| tensor.costs.iter().map(option).collect())
        .collect();
    let chosen = knapsack::choose(&items, budget).ok_or_else(|| {
        let least = |item: &Vec<Choice>| item.iter().map(|choice| choice.bytes).min().unwrap_or(0);
        let least = items.iter().map(least).fold(0, u64::saturating_add);
        let message = format!(
            "{} tensors do not fit into {} bytes: they take {least} at least",
            items.len(),
            budget
        );
        Problem::new(Code::MixedPrecisionBudget, message)
            .help("raise `bytes`, or give `sensitivity` a candidate of a smaller scheme")
    })?;
    let picked: Vec<(&str, &Cost)> = tensors
        .iter()
        .zip(&chosen)
        .map(|(tensor, option)| (tensor.tensor.as_str(), &tensor.costs[*option]))
        .collect();
    Ok(AssignmentFacts {
        overrides: overrides(&picked),
        bytes: picked.iter().map(|(_, cost)| cost.bytes).sum(),
        kld: picked.iter().map(|(_, cost)| cost.kld).sum(),
    })
}

/// For each kind of tensor its most frequent scheme as a pattern over all layers, then the layers
/// that differ.
fn overrides(picked: &[(&str, &Cost)]) -> Vec<ChosenScheme> {
    let mut kinds: BTreeMap<String, Vec<(&str, &str)>> = BTreeMap::new();
    for (tensor, cost) in picked {
        kinds
            .entry(kind(tensor))
            .or_default()
            .push((tensor, &cost.scheme));
    }
    let mut overrides = vec![];
    for (pattern, mut tensors) in kinds {
        tensors.sort_by_key(|(tensor, _)| base::by_number(tensor));
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        tensors
            .iter()
            .for_each(|(_, scheme)| *counts.entry(scheme).or_default() += 1);
        let Some((usual, _)) = counts.into_iter().rev().max_by_key(|(_, count)| *count) else {
            continue;
        };
        overrides.push(ChosenScheme {
            pattern,
            scheme: usual.into(),
        });
        let others = tensors.into_iter().filter(|(_, scheme)| *scheme != usual);
        overrides.extend(others.map(|(tensor, scheme)| ChosenScheme {
            pattern: tensor.into(),
            scheme: scheme.into(),
        }));
    }
    overrides
}

/// `blk.*.attn_q.weight` of `blk.3.attn_q.weight`.
fn kind(tensor: &str) -> String {
    let piece = |piece: &str| {
        if piece.parse::<u32>().is_ok() {
            "*".into()
        } else {
            piece.to_string()
        }
    };
    tensor
        .split('.')
        .map(piece)
        .collect::<Vec<String>>()
        .join(".")
}

/// As a piece of a plan.
fn render(choice: &AssignmentFacts, budget: u64) -> String {
    let mut text = format!(
        "# {} of {}; expected KL divergence {:.2e} nats, the sum of what each tensor was measured \
         to cost.\n# These lines can stand under a `requant` stage, pinned and edited; the last \
         that matches a tensor wins.\noverride = [\n",
        bytes(choice.bytes),
        bytes(budget),
        choice.kld
    );
    for ChosenScheme { pattern, scheme } in &choice.overrides {
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
    fn the_tensors_that_suffer_least_give_way() {
        let names = [
            "blk.0.attn_q.weight",
            "blk.1.attn_q.weight",
            "blk.2.attn_q.weight",
            "blk.0.ffn_up.weight",
        ];
        let tensors: Vec<_> = names
            .iter()
            .zip([3e-3, 1e-3, 2e-3, 5e-4])
            .map(|(n, k)| tensor(n, 0.0, k))
            .collect();
        let choice = choose(&tensors, 1740).unwrap();
        assert_eq!((choice.bytes, choice.kld), (1740, 1.5e-3));
        assert_eq!(
            render(&choice, 1750),
            "# 1.7 kB of 1.8 kB; expected KL divergence 1.50e-3 nats, the sum of what each tensor \
             was measured to cost.\n# These lines can stand under a `requant` stage, pinned and \
             edited; the last that matches a tensor wins.\noverride = [\n    { match = \
             \"blk.*.attn_q.weight\", scheme = \"native\" },\n    { match = \
             \"blk.1.attn_q.weight\", scheme = \"lpbq-64\" },\n    { match = \
             \"blk.*.ffn_up.weight\", scheme = \"lpbq-64\" },\n]\n"
        );
        let problem = choose(&tensors, 1600).unwrap_err();
        assert_eq!(
            problem.message,
            "4 tensors do not fit into 1600 bytes: they take 1680 at least"
        );
    }
}
