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
mod times;

use std::collections::BTreeMap;
use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Order, Outputs, ParamProblem, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::assignment::{AssignmentFacts, ChosenScheme, FRONT, FRONT_TEXT, OVERRIDES};
use crate::artifact::estimate::{self, ModelEstimate, ShardEstimate};
use crate::artifact::sensitivity::{Cost, Measurement, TensorCosts};
use crate::base::{self, CanonJson, Code, Problem, Result, bytes};
use budgets::Sums;
use front::{front, table};
use groups::tensor_costs;
use measured::Measured;
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
        version: 2,
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
                meaning: "Estimates with `layers = true`, all for one chip: first that of the graph \
                          of `sensitivity`, then those of its candidates. Needed for `decode_ms`.",
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
fn render(assignment: &AssignmentFacts, budget: Params) -> String {
    let mut text = format!("# {}", bytes(assignment.bytes));
    if let Some(budget) = budget.bytes {
        let _ = write!(text, " of {}", bytes(budget));
    }
    let _ = writeln!(
        text,
        "; expected KL divergence {:.2e} nats, the sum of what each tensor was measured to cost.",
        assignment.kld
    );
    if let (Some(us), Some(budget)) = (assignment.decode_us, budget.decode_ms) {
        let _ = writeln!(
            text,
            "# {:.3} of {budget} ms a decode call, expected by the estimates of the layers.",
            us / 1000.0
        );
    }
    text += "# These lines can stand under a `requant` stage, pinned and edited; the last that \
             matches a tensor wins.\noverride = [\n";
    for ChosenScheme { pattern, scheme } in &assignment.overrides {
        let _ = writeln!(text, "    {{ match = {pattern:?}, scheme = {scheme:?} }},");
    }
    text + "]\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::estimate::LayerEstimate;
    use serde_json::json;

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

    fn tensors() -> Vec<TensorCosts> {
        vec![
            tensor("blk.0.attn_q.weight", 0.0, 3e-3),
            tensor("blk.1.attn_q.weight", 0.0, 1e-3),
            tensor("blk.2.attn_q.weight", 0.0, 2e-3),
            tensor("blk.0.ffn_up.weight", 0.0, 5e-4),
        ]
    }

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

    /// An estimate of 2 ms a decode call. Each layer takes `us`, that of blk.0.ffn_up double.
    fn estimate(soc: &str, scheme: &str, us: f64) -> ModelEstimate {
        let mut layers = BTreeMap::new();
        for tensor in tensors() {
            let factor = if tensor.tensor.contains("ffn") {
                2.0
            } else {
                1.0
            };
            let layer = json!({"scheme": scheme, "time_us": us * factor, "tokens": 1, "rows": 1,
                "columns": 1, "weight": {"kind": "lpbq", "block": 64}, "bias": false});
            let layer: LayerEstimate = serde_json::from_value(layer).unwrap();
            layers.insert(tensor.tensor, layer);
        }
        let decode = json!({"tokens": 1, "context": 8, "time_us": 2000, "time_lower_us": 0,
            "time_upper_us": 0, "cycles": 0, "read_bytes": 0, "fill_bytes": 0, "spill_bytes": 0,
            "write_bytes": 0, "ops_without_cost": 0, "layers": layers});
        let shard = json!({"soc": soc, "arch": 73, "graphs": {"decode": decode}});
        ModelEstimate::of(vec![serde_json::from_value(shard).unwrap()]).unwrap()
    }

    /// 500 us of other things; native layers take 300 us, LPBQ 101.
    fn times() -> Times {
        let native = estimate("qcs9075", "native", 300.0);
        Times::of(&[native, estimate("qcs9075", "lpbq-64", 101.0)]).unwrap()
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

    #[test]
    fn the_front_has_no_point_that_another_beats() {
        let (tensors, times) = (tensors(), times());
        let measured = Measured::new(&tensors, Some(&times)).unwrap();
        assert_eq!(
            table(&front(&measured)),
            " KLD, nats       size decode, ms  lpbq-64  native\n\
             \x20   0.00e0     1.8 kB      2.000        0       4\n\
             \x20  5.00e-4     1.8 kB      1.602        1       3\n\
             \x20  1.50e-3     1.7 kB      1.403        2       2\n\
             \x20  3.50e-3     1.7 kB      1.204        3       1\n\
             \x20  6.50e-3     1.7 kB      1.005        4       0\n"
        );
        // Without estimates, and with more points than rows.
        let mut many = vec![];
        for index in 0..100 {
            let name = format!("blk.{index}.ffn_up.weight");
            many.push(tensor(&name, 0.0, f64::from(index + 1) * 1e-4));
        }
        let front = front(&Measured::new(&many, None).unwrap());
        let text = table(&front);
        let lines: Vec<&str> = text.lines().collect();
        assert!((30..=41).contains(&lines.len()), "{text}");
        assert!(
            lines[1].ends_with(" 45.0 kB          -        0     100"),
            "{text}"
        );
        assert!(
            lines
                .last()
                .unwrap()
                .ends_with(" 42.0 kB          -      100       0"),
            "{text}"
        );
    }

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
