//! A candidate: the graphs or context binaries whose numbers are compared with the reference's.

use super::decoder::{Decoder, Engine};
use super::demand;
use super::htp::Htp;
use super::observe::SLICE_ELEMENTS;
use super::onnx_runtime::OnnxRuntime;
use super::split::Split;
use crate::action::{Demand, Inputs, Isolation, Job, Order, Part, ToolFile};
use crate::artifact::context::{CPU, ROLES, binaries, binary_inputs};
use crate::artifact::tools::{libraries, runtime};
use crate::base::Result;
use crate::model::decoder::DecoderSpec;
use crate::model::facts::ContextFacts;
use crate::model::shards::Place;

/// What the simulator loads.
pub const SIMULATOR: [&str; 2] = ["libQnnHtp.so", "libQnnSystem.so"];

/// What runs the candidate of `job`.
pub fn decoder(job: &Job) -> Result<Decoder> {
    let model = model(job)?;
    let binaries = binary_inputs(job);
    let place = place(binaries.iter().map(|name| job.input(name)?.facts.read()))?;
    let engine: Box<dyn Engine> = match binaries.as_slice() {
        [] => Box::new(OnnxRuntime::open(job)?),
        _ if place == Place::default() => Box::new(Htp::open(job)?),
        _ => Box::new(Split::open(job, place, &model)?),
    };
    Ok(Decoder { engine, model })
}

/// What computes the ends of a model that is compiled in these binaries.
fn place(binaries: impl Iterator<Item = Result<ContextFacts>>) -> Result<Place> {
    Ok(ContextFacts::place(&binaries.collect::<Result<Vec<_>>>()?))
}

/// What the candidate was made of.
pub fn model(job: &Job) -> Result<DecoderSpec> {
    job.input("candidate/model.json")?.facts.read()
}

/// What the orders of one candidate share.
pub struct Candidate {
    parts: Vec<(String, Part)>,
    tools: Vec<ToolFile>,
    demand: Demand,
    /// Whether its inner tensors can be seen.
    pub has_ranges: bool,
}

impl Candidate {
    /// The candidate in slot `graph` or `context`.
    pub fn of(inputs: &Inputs) -> Result<Self> {
        if let Some(context) = inputs.optional("context") {
            let model = ("model.json".to_string(), context.part("model.json")?);
            let binaries = binaries(context)?;
            let mut demand = of_simulator(binaries.iter().map(|(_, part)| *part));
            let mut tools = libraries(inputs, &SIMULATOR)?;
            if place(binaries.iter().map(|(_, part)| part.facts.read()))? != Place::default() {
                demand.memory_bytes = demand
                    .memory_bytes
                    .saturating_add(demand::of_ends(context)?);
                tools.extend(runtime(inputs)?);
            }
            let on_cpu = context
                .under(CPU)
                .map(|(name, part)| (format!("{CPU}/{name}"), part));
            let parts = binaries.into_iter().chain([model]).chain(on_cpu);
            let parts = parts
                .map(|(name, part)| (format!("candidate/{name}"), part.clone()))
                .collect();
            return Ok(Candidate {
                demand,
                parts,
                tools,
                has_ranges: false,
            });
        }
        Candidate::of_graph(inputs)
    }

    /// The graph in slot `graph`, for ONNX Runtime.
    pub fn of_graph(inputs: &Inputs) -> Result<Self> {
        let graph = inputs.one("graph")?;
        let demand = demand::of_layers(graph, SLICE_ELEMENTS, |_, _| 0)?;
        let whole = ROLES.map(|role| format!("{role}.onnx"));
        let read = |name: &str| !name.ends_with(".onnx") || whole.iter().any(|file| file == name);
        let parts = graph.parts.iter().filter(|(name, _)| read(name.as_str()));
        let parts = parts
            .map(|(name, part)| (format!("candidate/{name}"), part.clone()))
            .collect();
        Ok(Candidate {
            demand,
            parts,
            tools: runtime(inputs)?,
            has_ranges: true,
        })
    }

    /// An order that runs the prefill graph.
    pub fn order<T>(&self, name: &str, params: T) -> Order<T> {
        let is_decode = |name: &str| {
            name.rsplit('/')
                .next()
                .is_some_and(|file| file.starts_with("decode"))
        };
        self.reading(name, params, |name| !is_decode(name))
    }

    /// An order that reads those of its parts that `reads` names.
    pub fn reading<T>(&self, name: &str, params: T, reads: impl Fn(&str) -> bool) -> Order<T> {
        let read = self.parts.iter().filter(|(name, _)| reads(name));
        let order = Order::new(name, params)
            .tools(self.tools.clone())
            .demand(self.demand);
        read.fold(order, |order, (name, part)| order.input(name, part))
    }
}

/// What it takes to simulate `binaries` one after the other. Measured: twelve times the bytes of
/// one, and what the simulator needs for itself.
pub fn of_simulator<'a>(binaries: impl Iterator<Item = &'a Part>) -> Demand {
    let bytes: u64 = binaries
        .map(|part| part.content.digest.size_bytes)
        .max()
        .unwrap_or(0);
    Demand {
        memory_bytes: bytes.saturating_mul(12).saturating_add(1 << 30),
        threads: 1,
        isolation: Isolation::Process,
    }
}
