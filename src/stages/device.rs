//! What the stages that load the vendor's libraries share: `context-bin`, `dlc`, `score`.

use crate::action::{Inputs, Job, Manifest, Order, Outputs, Part, PartName, ToolFile};
use crate::base::{CanonJson, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::{Role, by_name, role_of_blob};
use crate::model::facts::{Element, GraphFacts, WeightFacts};
use crate::model::onnx;
use crate::model::shards::{Place, Shard};
use crate::qnn::{Activations, DeviceGraph, GraphInfo, WeightEncoding};

use super::lower::lower;

/// The tool in `[tools]`.
pub const QNN: &str = "qnn";

/// The two graphs of a decoder, by role.
pub const ROLES: [&str; 2] = ["prefill", "decode"];

/// A context binary, in the folder of its shard if it has one.
pub const BINARY: &str = "model.bin";

/// What describes a model and goes with it from its graph on.
const DESCRIPTIONS: [&str; 2] = ["ledger.json", "model.json"];

/// The folder of what the CPU computes of a model, its weights included.
pub const CPU: &str = "cpu";

/// `order`, with what goes with the binaries made of `given`: what describes the model, and what is
/// the CPU's of it.
pub fn accompanied<T>(order: Order<T>, given: &Manifest) -> Result<Order<T>> {
    let order = DESCRIPTIONS.into_iter().try_fold(order, |order, name| {
        Ok(order.input(name, given.part(name)?))
    })?;
    Ok(given.under(CPU).fold(order, |order, (name, part)| {
        order.input(format!("{CPU}/{name}"), part)
    }))
}

/// Hands on what goes with the binaries, as far as it was given.
pub fn pass_company(job: &Job) -> Result<Outputs> {
    let is_company = |name: &str| DESCRIPTIONS.contains(&name) || is_on_cpu(name);
    let given = job
        .inputs()
        .map(|(name, _)| name)
        .filter(|name| is_company(name));
    given
        .map(|name| Ok((PartName::new(name)?, job.pass(name)?)))
        .collect()
}

/// Whether a part of this name is the CPU's.
pub fn is_on_cpu(name: &str) -> bool {
    name.strip_prefix(CPU)
        .is_some_and(|inside| inside.starts_with('/'))
}

/// What an `onnx` manifest leaves to the CPU: the graphs of `roles`, and the weights that they
/// point to.
pub fn on_cpu<'a>(
    graph: &'a Manifest,
    roles: &[String],
    place: Place,
    model: &DecoderSpec,
) -> Result<Vec<(String, &'a Part)>> {
    let (tensors, mut parts) = (by_name(model), vec![]);
    for end in place.on_cpu() {
        for role in roles {
            let file = format!("{}.onnx", end.graph_stem(role));
            parts.push((format!("{CPU}/{file}"), graph.part(&file)?));
        }
        let weights = graph.under("weights").filter(|(name, _)| {
            role_of_blob(&tensors, name).is_some_and(|role| end.reads(role, model))
        });
        parts.extend(weights.map(|(name, part)| (format!("{CPU}/weights/{name}"), part)));
    }
    Ok(parts)
}

/// The files `names` of the tool `qnn`, and the C++ runtime of the same wheel, whose name carries a
/// hash.
pub fn libraries(inputs: &Inputs, names: &[&str]) -> Result<Vec<ToolFile>> {
    let parts = inputs
        .tools
        .get(QNN)
        .into_iter()
        .flat_map(|tool| tool.parts.keys());
    let runtime = parts
        .filter_map(|path| path.as_str().rsplit('/').next())
        .filter(|name| name.starts_with("libc++") || name.starts_with("libunwind"));
    let names: Vec<&str> = names.iter().copied().chain(runtime).collect();
    inputs.tool_files(QNN, &names)
}

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

/// What an `onnx` manifest is cut into; nothing if it is whole.
pub fn shards(graph: &Manifest) -> Result<Vec<Shard>> {
    let files = graph
        .parts
        .iter()
        .filter(|(name, _)| name.as_str().ends_with(".onnx"));
    let mut shards = vec![];
    for (_, part) in files {
        shards.extend(part.facts.read::<GraphFacts>()?.shard);
    }
    shards.sort_by_key(|shard| shard.part);
    shards.dedup();
    Ok(shards)
}

/// The context binaries of a `context-bin` by name, in the order of the layers.
pub fn binaries(context: &Manifest) -> Result<Vec<(String, &Part)>> {
    let count = context
        .parts
        .keys()
        .filter(|name| is_binary(name.as_str()) && name.as_str() != BINARY)
        .count();
    if count == 0 || context.get(BINARY).is_some() {
        return Ok(vec![(BINARY.into(), context.part(BINARY)?)]);
    }
    let binary = |at| {
        let name = format!("{at}-of-{count}/{BINARY}");
        let part = context.part(&name).map_err(|problem| {
            problem.help("all shards are needed: is `sample` given to the `context-bin` stage?")
        })?;
        Ok((name, part))
    };
    (1..=count).map(binary).collect()
}

/// Those that `job` was given, in the same order: `context/10-of-12/model.bin` comes after
/// `context/9-of-12/model.bin`.
pub fn binary_inputs<'a>(job: &'a Job) -> Vec<&'a str> {
    let mut inputs: Vec<&str> = job
        .inputs()
        .map(|(name, _)| name)
        .filter(|name| is_binary(name))
        .collect();
    inputs.sort_by_key(|name| (name.len(), *name));
    inputs
}

/// Whether a part of this name is a context binary.
pub fn is_binary(name: &str) -> bool {
    name.rsplit('/').next() == Some(BINARY)
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
