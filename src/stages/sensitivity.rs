//! `sensitivity`: measures the cost of each scheme for each tensor. One tensor of a graph is stored
//! in another scheme, all others stay as they are, and the model's predictions are compared with
//! the reference's.
//!
//! One order per tensor, which runs the graph once for each candidate and window. `mixed-precision`
//! computes an assignment from the costs.

mod swap;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Manifest, Order, Outputs, ParamProblem, Part, PartName,
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
    #[serde(default = "default_windows")]
    #[schemars(range(min = 1))]
    windows: usize,
}

fn default_windows() -> usize {
    1
}

/// One tensor, and its schemes.
#[derive(Serialize, Deserialize)]
pub struct Tensor {
    tensor: String,
    windows: usize,
    /// In the graph.
    own: StoredSize,
    /// In the candidates that differ.
    candidates: Vec<StoredSize>,
}

/// The scheme that a tensor is stored in, and its size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredSize {
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

    fn check(params: &Params, _: &[InputStage]) -> Vec<ParamProblem> {
        let patterns = params.patterns.iter().enumerate();
        patterns
            .filter_map(|(index, text)| tensors::check_pattern(text, format!("match/{index}")))
            .collect()
    }

    fn tools(_: &Params, _: &[InputStage]) -> Vec<&'static str> {
        vec!["ort"]
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Tensor>>> {
        let graph = inputs.one("graph")?;
        let candidates = inputs.many("candidates");
        let reference = inputs.one("reference")?;
        let chosen_windows = windows(reference, Some(params.windows))?;
        let runtime = Candidate::of_graph(inputs)?;
        let mut patterns = vec![];
        for text in &params.patterns {
            patterns.push(tensors::pattern(text)?);
        }

        let mut orders = vec![];
        for name in tensor_names(graph) {
            if !patterns.is_empty() && !patterns.iter().any(|pattern| pattern.is_match(name)) {
                continue;
            }
            let own = blobs(graph, name);
            let (mut sizes, mut changes) = (vec![], vec![]);
            for (_, candidate) in candidates {
                let other = blobs(candidate, name);
                if other != own {
                    sizes.push(stored_size(name, &other)?);
                    changes.push((candidate.part(PREFILL)?, other));
                }
            }
            if changes.is_empty() {
                continue;
            }
            let tensor = Tensor {
                tensor: name.into(),
                windows: chosen_windows.len(),
                own: stored_size(name, &own)?,
                candidates: sizes,
            };
            let mut order = runtime.order(name, tensor);
            for (index, (prefill, blobs)) in changes.into_iter().enumerate() {
                let folder = format!("change/{index}");
                order = order.input(format!("{folder}/{PREFILL}"), prefill);
                for (blob, part) in blobs {
                    order = order.input(format!("{folder}/{blob}"), part);
                }
            }
            for (index, (_, (tokens, logits))) in chosen_windows.iter().enumerate() {
                order = order
                    .input(format!("tokens/{index}"), tokens)
                    .input(format!("logits/{index}"), logits);
            }
            orders.push(order);
        }
        if orders.is_empty() {
            return Err(Problem::new(
                Code::SensitivityNothing,
                "no candidate stores a tensor differently from the graph",
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
        for (index, StoredSize { scheme, bytes }) in order.candidates.into_iter().enumerate() {
            let folder = format!("change/{index}/");
            let other = decode(&job.read(&format!("{folder}{PREFILL}"))?)?;
            let changed = swap(base.clone(), &other, &order.tensor)?;
            let engine = runtime.reopen(job)?;
            engine.replace_prefill(&changed.encode_to_vec())?;
            for (input, _) in job.inputs() {
                if let Some(blob) = input.strip_prefix(&folder)
                    && blob != PREFILL
                {
                    engine.replace(blob, &job.path(input)?)?;
                }
            }
            let mut decoder = Decoder {
                engine: Box::new(engine),
                model: model.clone(),
            };
            let (mut sum, mut count) = (0.0, 0usize);
            for window in 0..order.windows {
                job.check_cancelled()?;
                job.progress((index * order.windows + window) as u64, calls, "runs");
                let (tokens, logits) = (format!("tokens/{window}"), format!("logits/{window}"));
                let score = score_window(job, &mut decoder, &tokens, &logits)?;
                for token in &score.tokens {
                    sum += token.kld;
                }
                count += score.tokens.len();
            }
            // Rounding can make a divergence of zero slightly negative.
            let kld = (sum / count.max(1) as f64).max(0.0);
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

/// The tensors whose blobs `graph` reads.
fn tensor_names(graph: &Manifest) -> BTreeSet<&str> {
    let blobs = graph.under("weights");
    blobs.map(|(blob, _)| blob_owner(blob)).collect()
}

/// The blobs of tensor `name`, by their paths relative to the graph's file.
fn blobs<'a>(graph: &'a Manifest, name: &str) -> BTreeMap<String, &'a Part> {
    let folder = format!("weights/{name}");
    let mut blobs = BTreeMap::new();
    for (blob, part) in graph.under(&folder) {
        blobs.insert(format!("{folder}/{blob}"), part);
    }
    blobs
}

fn stored_size(name: &str, blobs: &BTreeMap<String, &Part>) -> Result<StoredSize> {
    let (mut scheme, mut bytes) = (None, 0);
    for part in blobs.values() {
        let facts: WeightFacts = part.facts.read()?;
        if let (None, Some(error)) = (&scheme, facts.error) {
            scheme = Some(error.scheme);
        }
        bytes += part.content.digest.size_bytes;
    }
    let Some(scheme) = scheme else {
        let message = format!("the weights of `{name}` do not name their scheme");
        return Err(Problem::new(Code::SensitivityScheme, message));
    };
    Ok(StoredSize { scheme, bytes })
}
