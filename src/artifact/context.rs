//! What `graph`, `dlc` and `context-bin` hand over: graphs and binaries by name, and what goes with
//! them.

use crate::action::{Job, Manifest, Order, Outputs, Part, PartName};
use crate::base::Result;
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::{by_name, role_of_blob};
use crate::model::facts::GraphFacts;
use crate::model::shards::{Place, Shard};

/// The two graphs of a decoder, by role.
pub const ROLES: [&str; 2] = ["prefill", "decode"];

/// A context binary, in the folder of its shard if it has one.
pub const BINARY: &str = "model.bin";

/// What describes a model and goes with it from its graph on.
const DESCRIPTIONS: [&str; 2] = ["quantization.json", "model.json"];

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

/// The part of a `context-bin` that is a DLC around it.
pub const CONTAINER: &str = "container";
