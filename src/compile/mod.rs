//! What `dlc`, `context-bin`, `estimate` and `graph` share about compiling: lowering, the uses of
//! weights that are to be proved, the peak memory, and the orders.

mod shards;

use std::collections::BTreeSet;

use crate::action::{Demand, Isolation, Job, Part};
use crate::base::{CanonJson, Code, Problem, Result};
use crate::lower::{device_use, lower};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::shards::{Place, Shard};
use crate::model::decoder::tensors::{Role, by_name, role_of_blob};
use crate::model::facts::GraphFacts;
use crate::model::onnx;
use crate::model::onnx::proto::ModelProto;
use crate::model::weight::WeightFacts;
use crate::qnn::{DeviceGraph, DeviceUse, GraphInfo};

pub use shards::CompiledShards;

/// Lowers the ONNX graphs of `roles`. Their encodings must agree, because they share their caches.
/// A device graph reads its weights when the backend asks for them.
pub fn lower_graphs(job: &Job, roles: &[impl AsRef<str>]) -> Result<Vec<DeviceGraph>> {
    let mut models = vec![];
    for role in roles {
        let file = format!("{}.onnx", role.as_ref());
        let model = onnx::decode(&job.read(&file)?)?;
        models.push((file, model));
    }
    onnx::lint(&models.iter().map(|(_, model)| model).collect::<Vec<_>>())?;
    let mut graphs = vec![];
    for (file, model) in &models {
        let graph = lower_model(job, model)
            .map_err(|problem| problem.within(format!("failed to lower {file}")))?;
        graphs.push(graph);
    }
    Ok(graphs)
}

/// Lowers `model`, whose weights are inputs of `job`.
pub fn lower_model(job: &Job, model: &ModelProto) -> Result<DeviceGraph> {
    lower(model, &|location| job.read(location))
}

/// How the device uses weights in these graphs, without duplicates: what is to be proved.
pub fn device_uses(graphs: &[GraphFacts]) -> Result<Vec<DeviceUse>> {
    let mut uses = BTreeSet::new();
    for graph in graphs {
        if graph.weights.is_empty() {
            let message = format!(
                "graph `{}` does not say how its weights are stored",
                graph.name
            );
            return Err(Problem::new(Code::DeviceWeights, message)
                .help("write the graph again with this version of kiln"));
        }
        for weight_use in &graph.weights {
            uses.insert(device_use(*weight_use));
        }
    }
    Ok(uses.into_iter().collect())
}

/// Numbers of elements of weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Elements {
    /// Codes of a byte or less.
    pub codes: u64,
    /// Floating-point values.
    pub values: u64,
}

impl Elements {
    /// The elements of the weights whose blobs are `parts`.
    pub fn of_weights<'a>(parts: impl Iterator<Item = (&'a str, &'a Part)>) -> Self {
        let mut sum = Elements::default();
        for (_, part) in parts {
            sum.add(Elements::of_blob(part));
        }
        sum
    }

    /// Only the main part of a weight counts.
    fn of_blob(part: &Part) -> Self {
        let mut elements = Elements::default();
        match part.facts.read::<WeightFacts>() {
            Ok(facts) if !facts.is_main() => {}
            Ok(facts) if facts.encoding.is_plain() => elements.values = facts.values(),
            Ok(facts) => elements.codes = facts.values(),
            Err(_) => {}
        }
        elements
    }

    fn add(&mut self, other: Elements) {
        self.codes = self.codes.saturating_add(other.codes);
        self.values = self.values.saturating_add(other.values);
    }
}

/// Peak memory of a compilation of `graphs` graphs over `elements`. Measured with two graphs: 10.4
/// bytes for each element of native blocks and 21 for each fp16 element at 135 M elements, 7.5 for
/// each element of native blocks at 1.8 G.
pub fn compile_bytes(elements: Elements, graphs: u64) -> u64 {
    let codes = elements.codes.saturating_mul(9) / 2;
    let per_graph = codes.saturating_add(elements.values.saturating_mul(11));
    per_graph.saturating_mul(graphs).saturating_add(512 << 20)
}

/// The demand of an order that runs a vendor library: one thread of a child process.
pub fn process_demand(memory_bytes: u64) -> Demand {
    Demand {
        memory_bytes,
        threads: 1,
        isolation: Isolation::Process,
    }
}

/// Estimates the memory for compiling a model, in one piece or in shards.
pub struct Compilations<'a> {
    model: &'a DecoderSpec,
    /// Of each blob: the role of its weight, and its elements.
    weights: Vec<(Role, Elements)>,
    graphs: u64,
    place: Place,
}

impl<'a> Compilations<'a> {
    /// For `graphs` graphs of `model` over the blobs `weights`, by their names, without the parts
    /// that `place` leaves to the CPU.
    pub fn new(
        model: &'a DecoderSpec,
        weights: impl Iterator<Item = (&'a str, &'a Part)>,
        graphs: usize,
        place: Place,
    ) -> Self {
        let tensors = by_name(model);
        let mut elements = vec![];
        for (name, part) in weights {
            if let Some(role) = role_of_blob(&tensors, name) {
                elements.push((role, Elements::of_blob(part)));
            }
        }
        Compilations {
            model,
            weights: elements,
            graphs: graphs as u64,
            place,
        }
    }

    /// Peak memory of the compilation of `shard`.
    pub fn bytes(&self, shard: &Shard) -> u64 {
        let mut sum = Elements::default();
        for (role, elements) in &self.weights {
            if shard.reads(*role, self.model) {
                sum.add(*elements);
            }
        }
        compile_bytes(sum, self.graphs)
    }

    /// Peak memory of the largest compilation if the model is cut into `count` shards.
    pub fn largest(&self, count: u32) -> Result<u64> {
        let mut largest = 0;
        for shard in Shard::cut(self.model, count, self.place)? {
            largest = largest.max(self.bytes(&shard));
        }
        Ok(largest)
    }
}

/// Compares the graphs that were requested with those that the finished artifact reports.
pub fn check_signatures(artifact: &str, expected: &[GraphInfo], found: &[GraphInfo]) -> Result<()> {
    let (expected, found) = (sorted_texts(expected)?, sorted_texts(found)?);
    if expected == found {
        return Ok(());
    }
    let mut lacking = expected.clone();
    lacking.retain(|graph| !found.contains(graph));
    let mut other = found;
    other.retain(|graph| !expected.contains(graph));
    Err(Problem::new(
        Code::DeviceReadBack,
        format!(
            "the finished {artifact} is not what was asked for: it lacks {lacking:?} and has \
             {other:?} instead"
        ),
    ))
}

fn sorted_texts(graphs: &[GraphInfo]) -> Result<Vec<String>> {
    let mut texts = vec![];
    for graph in graphs {
        texts.push(CanonJson::of(graph)?.to_string());
    }
    texts.sort();
    Ok(texts)
}
