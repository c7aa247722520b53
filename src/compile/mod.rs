//! What compiling a graph takes: its lowering, the encodings to prove, the memory.

use crate::action::{Job, Manifest, Part};
use crate::base::{CanonJson, Problem, Result};
use crate::lower::lower;
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::{Role, by_name, role_of_blob};
use crate::model::facts::{Element, WeightFacts};
use crate::model::onnx;
use crate::model::shards::{Place, Shard};
use crate::qnn::{Activations, DeviceGraph, GraphInfo, WeightEncoding};

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

/// The encodings of those weights in an `onnx` manifest that the chip `reads`, as the lowering
/// spells them, each once.
pub fn encodings(graph: &Manifest, reads: impl Fn(&str) -> bool) -> Result<Vec<WeightEncoding>> {
    let mut found = vec![];
    for (name, part) in graph.under("weights").filter(|(name, _)| reads(name)) {
        let Some((tensor, what)) = name.rsplit_once('/') else {
            continue;
        };
        let encoding = match what {
            "values" if part.facts.read::<WeightFacts>()?.shape.len() == 2 => WeightEncoding::F16,
            "codes" => {
                let facts: WeightFacts = part.facts.read()?;
                let bits = match facts.element {
                    Element::Int4 | Element::Uint4 => 4,
                    _ => 8,
                };
                let block = facts.block.ok_or_else(|| {
                    Problem::new(
                        "kiln::device::block",
                        format!("the codes of `{tensor}` do not say how long a block is"),
                    )
                })?;
                let blob = |what: &str| graph.get(&format!("weights/{tensor}/{what}"));
                let scales = blob("scales")
                    .map(|scales| scales.facts.read::<WeightFacts>())
                    .transpose()?;
                let by_channel = facts.shape.last() == Some(&block.into())
                    && facts.element != Element::Uint4
                    && scales.is_some_and(|scales| scales.element == Element::F32)
                    && blob("offsets").is_none();
                if by_channel {
                    WeightEncoding::Channel {
                        bits,
                        activations: Activations::F16,
                    }
                } else {
                    WeightEncoding::FloatBlock {
                        bits,
                        block,
                        offsets: blob("offsets").is_some(),
                    }
                }
            }
            _ => continue,
        };
        found.push(encoding);
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// How many elements the weights have whose blobs are `parts`: codes of a byte or less, and
/// floating-point values.
pub fn weight_elements<'a>(parts: impl Iterator<Item = (&'a str, &'a Part)>) -> (u64, u64) {
    sum(parts.map(elements))
}

/// Those of one blob.
fn elements((name, part): (&str, &Part)) -> (u64, u64) {
    let elements = || {
        let Ok(facts) = part.facts.read::<WeightFacts>() else {
            return 0;
        };
        facts
            .shape
            .iter()
            .fold(1, |count: u64, &dim| count.saturating_mul(dim))
    };
    match name.rsplit('/').next() {
        Some("codes") => (elements(), 0),
        Some("values") => (0, elements()),
        _ => (0, 0),
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
        "kiln::device::read_back",
        format!(
            "the finished {artifact} is not what was asked for: it lacks {lacking:?} and has \
             {strange:?} instead"
        ),
    ))
}
