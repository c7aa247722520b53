//! `sensitivity`: measures the cost of each scheme for each tensor. One tensor of a graph, or a
//! group of them, is stored in another scheme, all others stay as they are, and the model's
//! predictions are compared with the reference's.
//!
//! One order per tensor or group, which runs the graph once for each candidate and window.
//! `mixed-precision` computes an assignment from the costs.

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
use crate::artifact::sensitivity::{
    COSTS, Cost, GroupCost, Measurement, StoredScheme, TensorCosts, TensorSchemes,
};
use crate::artifact::tensors;
use crate::base::{CanonJson, Code, Problem, Result};
use crate::model::facts::in_layer;
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
    /// Whether groups of tensors are measured instead of each tensor: all of a layer together, and
    /// all of a kind in every layer together. Of the candidates, only the first is run.
    #[serde(default)]
    groups: bool,
    /// Number of the reference's windows that are run.
    #[serde(default = "default_windows")]
    #[schemars(range(min = 1))]
    windows: usize,
}

fn default_windows() -> usize {
    1
}

/// The tensors that are stored in other schemes together.
#[derive(Serialize, Deserialize)]
pub struct Work {
    /// What they have in common, if it is a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    tensors: Vec<TensorSchemes>,
    windows: usize,
}

/// The stage.
pub struct Sensitivity;

impl TypedStage for Sensitivity {
    type Params = Params;
    type Order = Work;

    const SPEC: StageSpec = StageSpec {
        kind: "sensitivity",
        version: 2,
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
        params: &["match", "groups", "windows"],
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

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Work>>> {
        let graph = inputs.one("graph")?;
        let candidates = inputs.many("candidates");
        let reference = inputs.one("reference")?;
        let chosen_windows = windows(reference, Some(params.windows))?;
        let runtime = Candidate::of_graph(inputs)?;
        let mut patterns = vec![];
        for text in &params.patterns {
            patterns.push(tensors::pattern(text)?);
        }

        let mut changed: Vec<Changed> = vec![];
        for name in tensor_names(graph) {
            if patterns.is_empty() || patterns.iter().any(|pattern| pattern.is_match(name)) {
                let tensor = Changed::of(name, graph, candidates)?;
                // In a group, the first candidate is the one that is run.
                changed.extend(tensor.filter(|tensor| tensor.by_first || !params.groups));
            }
        }
        let mut orders = vec![];
        for (group, members) in groups(&changed, params.groups) {
            let work = Work {
                group: params.groups.then(|| group.into()),
                tensors: members
                    .iter()
                    .map(|tensor| tensor.schemes.clone())
                    .collect(),
                windows: chosen_windows.len(),
            };
            let mut order = runtime.order(group, work);
            for tensor in members {
                // The costs of further candidates follow from the first one's.
                let measured = if params.groups { 1 } else { usize::MAX };
                for (index, (prefill, blobs)) in tensor.changes.iter().take(measured).enumerate() {
                    let folder = format!("change/{index}");
                    order = order.input(format!("{folder}/{PREFILL}"), prefill);
                    for (blob, part) in blobs {
                        order = order.input(format!("{folder}/{blob}"), part);
                    }
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

    fn run(work: Work, job: &Job) -> Result<Outputs> {
        let mut klds = measure(&work, job)?;
        let measured = match (work.group, work.tensors) {
            (Some(group), tensors) => Measurement::Group(GroupCost {
                group,
                kld: klds.remove(0),
                tensors,
            }),
            (None, mut tensors) => {
                let schemes = tensors.remove(0);
                klds.insert(0, 0.0);
                let all = [schemes.own].into_iter().chain(schemes.candidates);
                let costs = all.zip(klds).map(|(stored, kld)| Cost {
                    scheme: stored.scheme,
                    bytes: stored.bytes,
                    kld,
                });
                Measurement::Tensor(TensorCosts {
                    tensor: schemes.tensor,
                    costs: costs.collect(),
                })
            }
        };
        let facts = CanonJson::of(&measured)?;
        let part = job.write(facts.to_string().as_bytes(), facts)?;
        Ok([(PartName::new(COSTS)?, part)].into())
    }
}

/// The divergence of the model with the tensors of `work` changed, for each of its changes.
fn measure(work: &Work, job: &Job) -> Result<Vec<f64>> {
    let base = decode(&job.read(&format!("candidate/{PREFILL}"))?)?;
    let (runtime, model) = (OnnxRuntime::open(job)?, model(job)?);
    let mut prefills = vec![];
    loop {
        let name = format!("change/{}/{PREFILL}", prefills.len());
        if job.input(&name).is_err() {
            break;
        }
        prefills.push(decode(&job.read(&name)?)?);
    }
    let calls = (prefills.len() * work.windows) as u64;
    let mut klds = vec![];
    for (index, other) in prefills.iter().enumerate() {
        let folder = format!("change/{index}/");
        let mut changed = base.clone();
        for schemes in &work.tensors {
            changed = swap(changed, other, &schemes.tensor)?;
        }
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
        for window in 0..work.windows {
            job.check_cancelled()?;
            job.progress((index * work.windows + window) as u64, calls, "runs");
            let (tokens, logits) = (format!("tokens/{window}"), format!("logits/{window}"));
            let score = score_window(job, &mut decoder, &tokens, &logits)?;
            for token in &score.tokens {
                sum += token.kld;
            }
            count += score.tokens.len();
        }
        // Rounding can make a divergence of zero slightly negative.
        klds.push((sum / count.max(1) as f64).max(0.0));
    }
    Ok(klds)
}

/// A tensor that candidates store differently from the graph.
struct Changed<'a> {
    schemes: TensorSchemes,
    /// Whether the first candidate is one of them.
    by_first: bool,
    /// The graph and the blobs of each such candidate.
    changes: Vec<(&'a Part, BTreeMap<String, &'a Part>)>,
}

impl<'a> Changed<'a> {
    /// The tensor `name`; `None` if no candidate stores it differently.
    fn of(
        name: &str,
        graph: &Manifest,
        candidates: &'a [(String, Manifest)],
    ) -> Result<Option<Changed<'a>>> {
        let own = blobs(graph, name);
        let mut schemes = TensorSchemes {
            tensor: name.into(),
            own: stored_scheme(name, &own)?,
            candidates: vec![],
        };
        let (mut by_first, mut changes) = (false, vec![]);
        for (index, (_, candidate)) in candidates.iter().enumerate() {
            let other = blobs(candidate, name);
            if other != own {
                by_first |= index == 0;
                schemes.candidates.push(stored_scheme(name, &other)?);
                changes.push((candidate.part(PREFILL)?, other));
            }
        }
        Ok(match changes.is_empty() {
            true => None,
            false => Some(Changed {
                schemes,
                by_first,
                changes,
            }),
        })
    }
}

/// The tensors by the group that they are measured in: each by itself; or `together`, by layer and
/// by kind. A tensor of no layer is a group of its own.
fn groups<'c, 'a>(
    changed: &'c [Changed<'a>],
    together: bool,
) -> BTreeMap<&'c str, Vec<&'c Changed<'a>>> {
    let mut groups: BTreeMap<&str, Vec<&Changed>> = BTreeMap::new();
    for tensor in changed {
        let name = tensor.schemes.tensor.as_str();
        match in_layer(name) {
            Some((_, kind)) if together => {
                let layer = &name[..name.len() - kind.len() - 1];
                groups.entry(layer).or_default().push(tensor);
                groups.entry(kind).or_default().push(tensor);
            }
            _ => groups.entry(name).or_default().push(tensor),
        }
    }
    groups
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

fn stored_scheme(name: &str, blobs: &BTreeMap<String, &Part>) -> Result<StoredScheme> {
    let (mut error, mut bytes) = (None, 0);
    for part in blobs.values() {
        let facts: WeightFacts = part.facts.read()?;
        error = error.or(facts.error);
        bytes += part.content.digest.size_bytes;
    }
    let Some(error) = error else {
        let message = format!("the weights of `{name}` do not name their scheme");
        return Err(Problem::new(Code::SensitivityScheme, message));
    };
    Ok(StoredScheme {
        scheme: error.scheme,
        bytes,
        sqnr_db: error.output_sqnr_db.or(error.sqnr_db),
    })
}
