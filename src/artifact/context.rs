//! The parts of `graph`, `dlc` and `context-bin`: names of graphs and binaries, and the parts that
//! all shards of a model share.

use crate::action::{Job, Manifest, Order, Outputs, Part, PartName};
use crate::base::Result;
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::shards::{Place, Shard};
use crate::model::decoder::tensors::{by_name, role_of_blob};
use crate::model::facts::GraphFacts;

/// The graph that computes one token.
pub const DECODE: &str = "decode";

/// The two graphs of a decoder, by role.
pub const ROLES: [&str; 2] = ["prefill", DECODE];

/// Both of them, the default of a parameter.
pub fn both_roles() -> Vec<String> {
    ROLES.map(String::from).into()
}

/// A context binary, in the folder of its shard if it has one.
pub const BINARY: &str = "model.bin";

/// The part of a `context-bin` that is a DLC around it.
pub const CONTAINER: &str = "container";

/// The parts that describe a model; they are passed on from its graph.
const DESCRIPTIONS: [&str; 2] = ["quantization.json", "model.json"];

/// The folder of the graphs that run on the CPU, with their weights.
pub const CPU: &str = "cpu";

/// Adds the parts of `manifest` that all shards share to the inputs of `order`: the descriptions of
/// the model, and the graphs that run on the CPU.
pub fn add_shared_parts<T>(mut order: Order<T>, manifest: &Manifest) -> Result<Order<T>> {
    for name in DESCRIPTIONS {
        order = order.input(name, manifest.part(name)?);
    }
    for (name, part) in manifest.under(CPU) {
        order = order.input(format!("{CPU}/{name}"), part);
    }
    Ok(order)
}

/// Returns those inputs of `job` that [`add_shared_parts`] adds, as outputs.
pub fn pass_shared_parts(job: &Job) -> Result<Outputs> {
    let mut outputs = Outputs::new();
    for (name, _) in job.inputs() {
        if DESCRIPTIONS.contains(&name) || is_on_cpu(name) {
            outputs.insert(PartName::new(name)?, job.pass(name)?);
        }
    }
    Ok(outputs)
}

/// Whether a part of this name is in the folder [`CPU`].
pub fn is_on_cpu(name: &str) -> bool {
    match name.split_once('/') {
        Some((folder, _)) => folder == CPU,
        None => false,
    }
}

/// The parts of an `onnx` manifest that run on the CPU: the graphs of `roles`, and the weights that
/// they read. By their names in the folder [`CPU`].
pub fn on_cpu<'a>(
    graph: &'a Manifest,
    roles: &[String],
    place: Place,
    model: &DecoderSpec,
) -> Result<Vec<(String, &'a Part)>> {
    let (tensors, mut parts) = (by_name(model), vec![]);
    for module in place.on_cpu() {
        for role in roles {
            let file = format!("{}.onnx", module.graph_stem(role));
            parts.push((format!("{CPU}/{file}"), graph.part(&file)?));
        }
        for (name, part) in graph.under("weights") {
            if let Some(role) = role_of_blob(&tensors, name)
                && module.reads(role, model)
            {
                parts.push((format!("{CPU}/weights/{name}"), part));
            }
        }
    }
    Ok(parts)
}

/// The shards of an `onnx` manifest; empty if the model is not cut. A `dlc` is never cut.
pub fn shards(graph: &Manifest) -> Result<Vec<Shard>> {
    let mut shards = vec![];
    for (name, part) in &graph.parts {
        if name.as_str().ends_with(".onnx") {
            shards.extend(part.facts.read::<GraphFacts>()?.shard);
        }
    }
    shards.sort_by_key(|shard| shard.part);
    shards.dedup();
    Ok(shards)
}

/// The context binaries of a `context-bin` by name, in the order of the layers.
pub fn binaries(context: &Manifest) -> Result<Vec<(String, &Part)>> {
    let names = context.parts.keys();
    let count = names.filter(|name| is_binary(name.as_str())).count();
    if count == 0 || context.get(BINARY).is_some() {
        return Ok(vec![(BINARY.into(), context.part(BINARY)?)]);
    }
    let mut binaries = vec![];
    for shard in 1..=count {
        let name = format!("{shard}-of-{count}/{BINARY}");
        let part = context.part(&name).map_err(|problem| {
            problem.help("all shards are needed: is `sample` given to the `context-bin` stage?")
        })?;
        binaries.push((name, part));
    }
    Ok(binaries)
}

/// The context binaries among the inputs of `job`, in the order of the layers:
/// `context/10-of-12/model.bin` comes after `context/9-of-12/model.bin`.
pub fn binary_inputs<'a>(job: &'a Job) -> Vec<&'a str> {
    let mut inputs = vec![];
    for (name, _) in job.inputs() {
        if is_binary(name) {
            inputs.push(name);
        }
    }
    inputs.sort_by_key(|name| (name.len(), *name));
    inputs
}

/// Whether a part of this name is a context binary.
pub fn is_binary(name: &str) -> bool {
    name.rsplit('/').next() == Some(BINARY)
}
