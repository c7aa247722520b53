//! What compiling a graph takes: its lowering, the uses of weights to prove, the memory.

use std::collections::BTreeSet;

use crate::action::{Job, Part};
use crate::base::{CanonJson, Code, Problem, Result};
use crate::lower::{device_use, lower};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::{Role, by_name, role_of_blob};
use crate::model::facts::GraphFacts;
use crate::model::onnx;
use crate::model::shards::{Place, Shard};
use crate::model::weight::WeightFacts;
use crate::qnn::{DeviceGraph, DeviceUse, GraphInfo};

/// Lowers the ONNX graphs of `roles`, whose encodings must hold together: they share their caches.
/// A graph reads the weights it needs when the backend asks for them.
pub fn lowered(job: &Job, roles: &[impl AsRef<str>]) -> Result<Vec<DeviceGraph>> {
    let files: Vec<String> = roles
        .iter()
        .map(|role| format!("{}.onnx", role.as_ref()))
        .collect();
    let models = files
        .iter()
        .map(|file| onnx::decode(&job.read(file)?))
        .collect::<Result<Vec<_>>>()?;
    onnx::lint(&models.iter().collect::<Vec<_>>())?;
    let lower = |(file, model)| {
        let graph = lower(model, &|location| job.read(location));
        graph.map_err(|problem| problem.within(format!("failed to lower {file}")))
    };
    files.iter().zip(&models).map(lower).collect()
}

/// What the device does with weights in these graphs, each once: what is to be proved.
pub fn device_uses<'a>(graphs: impl Iterator<Item = &'a GraphFacts>) -> Result<Vec<DeviceUse>> {
    let mut uses = BTreeSet::new();
    for graph in graphs {
        if graph.weights.is_empty() {
            let what = format!(
                "graph `{}` does not say how its weights are stored",
                graph.name
            );
            return Err(Problem::new(Code::DeviceWeights, what)
                .help("write the graph again with this version of kiln"));
        }
        uses.extend(
            graph
                .weights
                .iter()
                .map(|weight_use| device_use(*weight_use)),
        );
    }
    Ok(uses.into_iter().collect())
}

/// How many elements the weights have whose blobs are `parts`: codes of a byte or less, and
/// floating-point values.
pub fn weight_elements<'a>(parts: impl Iterator<Item = (&'a str, &'a Part)>) -> (u64, u64) {
    sum(parts.map(elements))
}

/// Those of one blob.
fn elements((_, part): (&str, &Part)) -> (u64, u64) {
    match part.facts.read::<WeightFacts>() {
        Ok(facts) if !facts.is_main() => (0, 0),
        Ok(facts) if facts.encoding.is_plain() => (0, facts.values()),
        Ok(facts) => (facts.values(), 0),
        Err(_) => (0, 0),
    }
}

fn sum(elements: impl Iterator<Item = (u64, u64)>) -> (u64, u64) {
    elements.fold((0, 0), |sum, more| {
        (sum.0.saturating_add(more.0), sum.1.saturating_add(more.1))
    })
}

/// Peak memory of a compilation of so many codes and values. Measured, two graphs: 10.4 bytes an
/// element of native blocks and 21 an element of halves at 135 M elements, 7.5 an element of native
/// blocks at 1.8 G.
pub fn compile_bytes((codes, values): (u64, u64), graphs: u64) -> u64 {
    let per_graph = (codes.saturating_mul(9) / 2).saturating_add(values.saturating_mul(11));
    per_graph.saturating_mul(graphs).saturating_add(512 << 20)
}

/// What compiling a model takes, whole or in shards.
pub struct Compilations<'a> {
    model: &'a DecoderSpec,
    /// Of each blob: what its weight is, codes and floating-point values in it.
    weights: Vec<(Role, (u64, u64))>,
    graphs: u64,
    place: Place,
}

impl<'a> Compilations<'a> {
    /// Of so many graphs of `model` over the blobs `weights`, by their names, without what `place`
    /// leaves to the CPU.
    pub fn new(
        model: &'a DecoderSpec,
        weights: impl Iterator<Item = (&'a str, &'a Part)>,
        graphs: usize,
        place: Place,
    ) -> Self {
        let tensors = by_name(model);
        let weights =
            weights.filter_map(|blob| Some((role_of_blob(&tensors, blob.0)?, elements(blob))));
        Compilations {
            model,
            weights: weights.collect(),
            graphs: graphs as u64,
            place,
        }
    }

    /// Peak memory of the compilation of `shard`.
    pub fn bytes(&self, shard: &Shard) -> u64 {
        let read = self
            .weights
            .iter()
            .filter(|(role, _)| shard.reads(*role, self.model));
        compile_bytes(sum(read.map(|(_, elements)| *elements)), self.graphs)
    }

    /// That of the largest of so many shards.
    pub fn largest(&self, count: u32) -> Result<u64> {
        Ok(Shard::cut(self.model, count, self.place)?
            .iter()
            .map(|shard| self.bytes(shard))
            .max()
            .unwrap_or(0))
    }
}

/// Compares what was asked for with what the finished artifact says of itself.
pub fn check_signatures(artifact: &str, asked: &[GraphInfo], found: &[GraphInfo]) -> Result<()> {
    let text = |graphs: &[GraphInfo]| -> Result<Vec<String>> {
        let mut all = graphs
            .iter()
            .map(|graph| Ok(CanonJson::of(graph)?.to_string()))
            .collect::<Result<Vec<_>>>()?;
        all.sort();
        Ok(all)
    };
    let (asked, found) = (text(asked)?, text(found)?);
    if asked == found {
        return Ok(());
    }
    let lacking: Vec<&String> = asked
        .iter()
        .filter(|graph| !found.contains(graph))
        .collect();
    let strange: Vec<&String> = found
        .iter()
        .filter(|graph| !asked.contains(graph))
        .collect();
    Err(Problem::new(
        Code::DeviceReadBack,
        format!(
            "the finished {artifact} is not what was asked for: it lacks {lacking:?} and has \
             {strange:?} instead"
        ),
    ))
}
