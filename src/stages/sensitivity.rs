//! `sensitivity`: the measured cost of each scheme for each tensor: one tensor of a graph is stored
//! in another scheme, all others stay as they are, and the model's predictions are compared with
//! the reference's.
//!
//! One order per tensor, which runs the graph once for each candidate and window. `mixed-precision`
//! makes an assignment of it.

mod swap;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Given, InputSpec, Inputs, Job, Manifest, Order, Outputs, ParamProblem, Part, PartName,
    StageSpec, TypedStage,
};
use crate::artifact::reference::windows;
use crate::artifact::sensitivity::{Cost, TensorCosts};
use crate::artifact::tensors;
use crate::base::{CanonJson, Code, Problem, Result};
use crate::model::onnx::decode;
use crate::model::weight::{WeightFacts, blob_owner};
use crate::run::{Candidate, Decoder, OnnxRuntime, model, score_window};
use swap::swap;

/// The graph that is run.
const PREFILL: &str = "prefill.onnx";

/// The parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Glob patterns of the tensors to measure. By default all that a candidate stores differently
    /// from `graph`; others are never measured.
    #[serde(rename = "match", default)]
    patterns: Vec<String>,
    /// Number of the reference's windows that are run.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    windows: usize,
}

fn one() -> usize {
    1
}

/// One tensor, and what its candidates take.
#[derive(Serialize, Deserialize)]
pub struct Tensor {
    tensor: String,
    windows: usize,
    /// As the graph has it.
    own: Held,
    /// In other schemes.
    candidates: Vec<Held>,
}

/// How a tensor is held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    scheme: String,
    bytes: u64,
}

/// The stage.
pub struct Sensitivity;

impl TypedStage for Sensitivity {
    type Params = Params;
    type Order = Tensor;

    const SPEC: StageSpec = StageSpec {
        kind: "sensitivity",
        version: 1,
        summary: "the cost of each scheme for each tensor, measured on the whole model",
        output: "sensitivity",
        inputs: &[
            InputSpec {
                name: "reference",
                meaning: "The reference to compare with.",
                accepts: &["reference"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "graph",
                meaning: "The graph in which one tensor at a time is replaced, best over `native` \
                          weights: its own schemes count as costing nothing.",
                accepts: &["onnx"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "candidates",
                meaning: "Graphs over weights of the same model in other schemes, with the same \
                          `prefill` and `context`.",
                accepts: &["onnx"],
                required: true,
                many: true,
            },
        ],
        params: &["match", "windows"],
        keyed: &[],
        reaches_outside: false,
        measures: true,
    };

    fn check(params: &Params, _: &[Given]) -> Vec<ParamProblem> {
        let patterns = params.patterns.iter().enumerate();
        patterns
            .filter_map(|(index, text)| tensors::check_pattern(text, format!("match/{index}")))
            .collect()
    }

    fn tools(_: &Params, _: &[Given]) -> Vec<&'static str> {
        vec!["ort"]
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Tensor>>> {
        let graph = inputs.one("graph")?;
        let candidates = inputs.many("candidates");
        let windows = windows(inputs.one("reference")?, Some(params.windows))?;
        let runtime = Candidate::of_graph(inputs)?;
        let patterns = params
            .patterns
            .iter()
            .map(|text| tensors::pattern(text))
            .collect::<Result<Vec<_>>>()?;
        let wanted = |name: &&str| {
            patterns.is_empty() || patterns.iter().any(|pattern| pattern.is_match(name))
        };

        let mut orders = vec![];
        for name in names(graph).into_iter().filter(wanted) {
            let own = blobs(graph, name);
            let others = candidates
                .iter()
                .map(|(_, other)| (other, blobs(other, name)));
            let others: Vec<_> = others.filter(|(_, blobs)| *blobs != own).collect();
            if others.is_empty() {
                continue;
            }
            let tensor = Tensor {
                tensor: name.into(),
                windows: windows.len(),
                own: held(name, &own)?,
                candidates: others
                    .iter()
                    .map(|(_, blobs)| held(name, blobs))
                    .collect::<Result<_>>()?,
            };
            let mut order = runtime.order(name, tensor);
            for (index, (manifest, blobs)) in others.into_iter().enumerate() {
                let changed = blobs
                    .into_iter()
                    .chain([(PREFILL.into(), manifest.part(PREFILL)?)]);
                order = changed.fold(order, |order, (blob, part)| {
                    order.input(format!("change/{index}/{blob}"), part)
                });
            }
            for (index, (_, (tokens, logits))) in windows.iter().enumerate() {
                order = order
                    .input(format!("tokens/{index}"), tokens)
                    .input(format!("logits/{index}"), logits);
            }
            orders.push(order);
        }
        if orders.is_empty() {
            return Err(Problem::new(
                Code::SensitivityNothing,
                "no candidate holds a tensor otherwise than the graph",
            )
            .help(
                "give `candidates` that are graphs over weights of another scheme, and `match` \
                 patterns of tensors",
            ));
        }
        Ok(orders)
    }

    fn run(order: Tensor, job: &Job) -> Result<Outputs> {
        let base = decode(&job.read(&format!("candidate/{PREFILL}"))?)?;
        let (runtime, model) = (OnnxRuntime::open(job)?, model(job)?);
        let mut costs = vec![Cost {
            scheme: order.own.scheme,
            bytes: order.own.bytes,
            kld: 0.0,
        }];
        let calls = (order.candidates.len() * order.windows) as u64;
        for (index, Held { scheme, bytes }) in order.candidates.into_iter().enumerate() {
            let folder = format!("change/{index}/");
            let changed = swap(
                base.clone(),
                &decode(&job.read(&format!("{folder}{PREFILL}"))?)?,
                &order.tensor,
            )?;
            let engine = runtime.anew(job)?;
            engine.replace_prefill(&changed.encode_to_vec())?;
            for (input, _) in job.inputs() {
                if let Some(blob) = input.strip_prefix(&folder).filter(|blob| *blob != PREFILL) {
                    engine.replace(blob, &job.path(input)?)?;
                }
            }
            let mut decoder = Decoder {
                engine: Box::new(engine),
                model: model.clone(),
            };
            let mut klds = vec![];
            for window in 0..order.windows {
                job.check_cancelled()?;
                job.progress((index * order.windows + window) as u64, calls, "runs");
                let (tokens, logits) = (format!("tokens/{window}"), format!("logits/{window}"));
                klds.extend(
                    score_window(job, &mut decoder, &tokens, &logits)?
                        .tokens
                        .into_iter()
                        .map(|token| token.kld),
                );
            }
            // Rounding can make a divergence of nothing a little less than nothing.
            let kld = (klds.iter().sum::<f64>() / klds.len().max(1) as f64).max(0.0);
            costs.push(Cost { scheme, bytes, kld });
        }
        let facts = CanonJson::of(&TensorCosts {
            tensor: order.tensor,
            costs,
        })?;
        Ok([(
            PartName::new("costs.json")?,
            job.write(facts.to_string().as_bytes(), facts)?,
        )]
        .into())
    }
}

/// The tensors whose blobs `graph` points to.
fn names(graph: &Manifest) -> BTreeSet<&str> {
    graph
        .under("weights")
        .map(|(blob, _)| blob_owner(blob))
        .collect()
}

/// The blobs of tensor `name`, by their place beside the graph's file.
fn blobs<'a>(graph: &'a Manifest, name: &str) -> BTreeMap<String, &'a Part> {
    let folder = format!("weights/{name}");
    graph
        .under(&folder)
        .map(|(blob, part)| (format!("{folder}/{blob}"), part))
        .collect()
}

fn held(name: &str, blobs: &BTreeMap<String, &Part>) -> Result<Held> {
    let facts = blobs
        .values()
        .map(|part| part.facts.read())
        .collect::<Result<Vec<WeightFacts>>>()?;
    let scheme = facts
        .into_iter()
        .find_map(|facts| facts.error)
        .map(|error| error.scheme);
    let unknown = || {
        Problem::new(
            Code::SensitivityScheme,
            format!("the weights of `{name}` do not say their scheme"),
        )
    };
    let bytes = blobs
        .values()
        .map(|part| part.content.digest.size_bytes)
        .sum();
    Ok(Held {
        scheme: scheme.ok_or_else(unknown)?,
        bytes,
    })
}
