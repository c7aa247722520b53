//! `mixed-precision`: chooses a scheme for each tensor, so that the model loses least within a
//! budget of bytes, of time, or of both.
//!
//! The assignment solves a knapsack problem over the measured costs, which are assumed to add up,
//! as are the estimated times of layers. It is written as the overrides of a `requant` stage, to be
//! read, pinned and edited; `requant` with `scheme = "auto"` takes them as they are.

mod budgets;
mod front;
mod groups;
mod knapsack;
mod measured;
mod overrides;
#[cfg(test)]
mod samples;
mod times;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Order, Outputs, ParamProblem, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::assignment::{AssignmentFacts, FRONT, FRONT_TEXT, OVERRIDES};
use crate::artifact::estimate::{self, ModelEstimate, ShardEstimate};
use crate::artifact::sensitivity::{Measurement, TensorCosts};
use crate::base::{CanonJson, Code, Problem, Result};
use budgets::Sums;
use front::{front, table};
use groups::tensor_costs;
use measured::Measured;
use overrides::{overrides, render};
use times::Times;

/// The parameters.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Bytes that the measured tensors may take together: codes, scales and offsets. This or
    /// `decode_ms` must be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    /// Milliseconds that a decode call may take, by `estimates`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    decode_ms: Option<f64>,
}

/// The folder of the estimates among the inputs of the order.
const ESTIMATES: &str = "estimates/";

/// The stage.
pub struct MixedPrecision;

impl TypedStage for MixedPrecision {
    type Params = Params;
    type Order = Params;

    const SPEC: StageSpec = StageSpec {
        kind: "mixed-precision",
        version: 3,
        summary: "a scheme for each tensor, so that the model loses least within a budget of bytes \
                  or time",
        output: "assignment",
        inputs: &[
            InputSpec {
                name: "sensitivity",
                meaning: "The measured cost of each scheme for each tensor.",
                accepts: &["sensitivity"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "estimates",
                meaning: "Estimates with `layers = true`, all for one chip, of graphs that have \
                          each measured tensor in each scheme; first that which is most like the \
                          expected result. Needed for `decode_ms`.",
                accepts: &["estimate"],
                required: false,
                many: true,
            },
        ],
        params: &["bytes", "decode_ms"],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn check(params: &Params, inputs: &[InputStage]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        let mut problem = |path: &str, message: &str, help: &str| {
            problems.push(ParamProblem {
                path: path.into(),
                problem: Problem::new(Code::PlanParameter, message).help(help),
            });
        };
        let has_estimates = InputStage::fills(inputs, "estimates");
        if params.decode_ms.is_some() != has_estimates {
            let path = if has_estimates { "" } else { "decode_ms" };
            let message = "`decode_ms` and `estimates` belong together";
            let help = "give both, or neither: the time of the layers is read from stages of kind \
                        `estimate` with `layers = true`";
            problem(path, message, help);
        } else if params.bytes.is_none() && params.decode_ms.is_none() {
            let help = "give `bytes`, or `decode_ms` with `estimates`, or both";
            problem("", "there is no budget", help);
        }
        problems
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let mut order = Order::new("", params);
        for (name, part) in &inputs.one("sensitivity")?.parts {
            order = order.input(name.as_str(), part);
        }
        for (index, (_, manifest)) in inputs.many("estimates").iter().enumerate() {
            for (name, part) in estimate::estimates(manifest) {
                order = order.input(format!("{ESTIMATES}{index}/{name}"), part);
            }
        }
        Ok(vec![order])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let mut measurements: Vec<Measurement> = vec![];
        for (name, input) in job.inputs() {
            if !name.starts_with(ESTIMATES) {
                measurements.push(input.facts.read()?);
            }
        }
        let tensors = tensor_costs(measurements);
        let times = match params.decode_ms {
            Some(_) => Some(Times::of(&estimates(job)?)?),
            None => None,
        };
        let assignment = assign(&tensors, times.as_ref(), params)?;
        let front = front(&Measured::new(&tensors, times.as_ref())?);
        let text = render(&assignment, params);
        let overrides = job.write(text.as_bytes(), CanonJson::of(&assignment)?)?;
        let mut outputs = Outputs::from([(PartName::new(OVERRIDES)?, overrides)]);
        for (name, text) in [
            (FRONT, CanonJson::of(&front)?.to_string()),
            (FRONT_TEXT, table(&front)),
        ] {
            let part = job.write(text.as_bytes(), CanonJson::default())?;
            outputs.insert(PartName::new(name)?, part);
        }
        Ok(outputs)
    }
}

/// The estimates among the inputs of `job`, in the order of the plan.
fn estimates(job: &Job) -> Result<Vec<ModelEstimate>> {
    let mut shards: BTreeMap<usize, Vec<ShardEstimate>> = BTreeMap::new();
    for (name, input) in job.inputs() {
        if let Some(rest) = name.strip_prefix(ESTIMATES)
            && let Some((index, _)) = rest.split_once('/')
            && let Ok(index) = index.parse()
        {
            shards.entry(index).or_default().push(input.facts.read()?);
        }
    }
    let mut estimates = vec![];
    for shards in shards.into_values() {
        estimates.push(ModelEstimate::of(shards)?);
    }
    Ok(estimates)
}

/// The assignment of schemes with the least loss within `budget`. A budget of time needs `times`.
fn assign(
    tensors: &[TensorCosts],
    times: Option<&Times>,
    budget: Params,
) -> Result<AssignmentFacts> {
    let measured = Measured::new(tensors, times)?;
    let budgets = measured.budgets(budget.bytes, budget.decode_ms);
    let Some(chosen) = budgets.and_then(|budgets| budgets::choose(&measured.items, budgets)) else {
        return Err(over_budget(&measured, budget));
    };
    let sums = Sums::of(&measured.items, &chosen);
    let mut picked = vec![];
    for (tensor, cost) in tensors.iter().zip(measured.costs(&chosen)) {
        picked.push((tensor.tensor.as_str(), cost));
    }
    Ok(AssignmentFacts {
        overrides: overrides(&picked),
        bytes: sums.bytes,
        kld: sums.error,
        decode_us: measured.decode_us(&sums),
    })
}

fn over_budget(measured: &Measured, budget: Params) -> Problem {
    let count = measured.items.len();
    let mut least = 0u64;
    for item in &measured.items {
        let smallest = item.iter().map(|choice| choice.bytes).min();
        least = least.saturating_add(smallest.unwrap_or(0));
    }
    if let Some(bytes) = budget.bytes
        && least > bytes
    {
        let message =
            format!("{count} tensors do not fit into {bytes} bytes: they take {least} at least");
        return Problem::new(Code::MixedPrecisionBudget, message)
            .help("raise `bytes`, or give `sensitivity` a candidate of a smaller scheme");
    }
    let mut message = "no assignment of schemes meets the budget of time".to_string();
    if let (Some(ms), Some(fastest)) = (
        budget.decode_ms,
        budgets::fastest(&measured.items, budget.bytes),
    ) && let Some(us) = measured.decode_us(&Sums::of(&measured.items, &fastest))
    {
        let within = match budget.bytes {
            Some(bytes) => format!(" within {bytes} bytes"),
            None => String::new(),
        };
        let least = us / 1000.0;
        message = format!("a decode call takes {least:.3} ms at least{within}, more than {ms} ms");
    }
    Problem::new(Code::MixedPrecisionBudget, message)
        .help("raise `decode_ms`, or give `sensitivity` a candidate of a faster scheme")
}

#[cfg(test)]
mod tests {
    use super::*;
    use samples::{tensors, times};

    fn budget(bytes: Option<u64>, decode_ms: Option<f64>) -> Params {
        Params { bytes, decode_ms }
    }

    #[test]
    fn the_least_sensitive_tensors_get_the_smaller_scheme() {
        let tensors = tensors();
        let assignment = assign(&tensors, None, budget(Some(1740), None)).unwrap();
        assert_eq!((assignment.bytes, assignment.kld), (1740, 1.5e-3));
        assert_eq!(
            render(&assignment, budget(Some(1750), None)),
            "# 1.7 kB of 1.8 kB; expected KL divergence 1.50e-3 nats, the sum of what each tensor \
             was measured to cost.\n# These lines can stand under a `requant` stage, pinned and \
             edited; the last that matches a tensor wins.\noverride = [\n    { match = \
             \"blk.*.attn_q.weight\", scheme = \"native\" },\n    { match = \
             \"blk.1.attn_q.weight\", scheme = \"lpbq-64\" },\n    { match = \
             \"blk.*.ffn_up.weight\", scheme = \"lpbq-64\" },\n]\n"
        );
        let problem = assign(&tensors, None, budget(Some(1600), None)).unwrap_err();
        assert_eq!(
            problem.message,
            "4 tensors do not fit into 1600 bytes: they take 1680 at least"
        );
    }

    #[test]
    fn a_budget_of_time_buys_the_time_of_the_least_sensitive_tensors() {
        let (tensors, times) = (tensors(), times());
        let assign = |bytes, ms| assign(&tensors, Some(&times), budget(bytes, Some(ms)));
        for (bytes, ms, expected) in [
            (None, 2.0, (1800, 0.0, 2000.0)),
            (None, 1.7, (1770, 5e-4, 1602.0)),
            (None, 1.5, (1740, 1.5e-3, 1403.0)),
            (Some(1800), 1.5, (1740, 1.5e-3, 1403.0)),
            (Some(1739), 1.5, (1710, 3.5e-3, 1204.0)),
            (None, 1.1, (1680, 6.5e-3, 1005.0)),
        ] {
            let found = assign(bytes, ms).unwrap();
            let us = found.decode_us.unwrap();
            assert_eq!((found.bytes, us), (expected.0, expected.2), "{ms} ms");
            assert!((found.kld - expected.1).abs() < 1e-12, "{ms} ms");
        }
        let text = render(&assign(None, 1.5).unwrap(), budget(None, Some(1.5)));
        assert!(
            text.starts_with(
                "# 1.7 kB; expected KL divergence 1.50e-3 nats, the sum of what each tensor was \
                 measured to cost.\n# 1.403 of 1.5 ms a decode call, expected by the estimates of \
                 the layers.\n# These lines"
            ),
            "{text}"
        );
        let message = |bytes, ms| assign(bytes, ms).unwrap_err().message;
        assert_eq!(
            message(None, 1.0),
            "a decode call takes 1.005 ms at least, more than 1 ms"
        );
        assert_eq!(
            message(Some(1700), 0.25),
            "a decode call takes 1.005 ms at least within 1700 bytes, more than 0.25 ms"
        );
        assert!(message(Some(1600), 2.0).contains("do not fit into 1600 bytes"));
    }
}
