//! A candidate: the graphs or context binaries whose predictions are compared with the reference's.

use super::decoder::{Decoder, Engine};
use super::demand;
use super::htp::Htp;
use super::layers::SLICE_ELEMENTS;
use super::onnx_runtime::OnnxRuntime;
use super::split::Split;
use crate::action::{Demand, Inputs, Isolation, Job, Order, Part, ToolFile};
use crate::artifact::context::{CPU, ROLES, binaries, binary_inputs};
use crate::artifact::tools::{libraries, runtime};
use crate::base::Result;
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::shards::Place;
use crate::model::facts::ContextFacts;

/// The library files of the simulator.
pub const SIMULATOR: [&str; 2] = ["libQnnHtp.so", "libQnnSystem.so"];

/// The candidate of `job` as a decoder. Its files decide which engine runs it.
pub fn decoder(job: &Job) -> Result<Decoder> {
    let spec = model(job)?;
    let mut binaries = vec![];
    for name in binary_inputs(job) {
        binaries.push(job.input(name)?.facts.read::<ContextFacts>()?);
    }
    let place = ContextFacts::place(&binaries);
    let engine: Box<dyn Engine> = if binaries.is_empty() {
        Box::new(OnnxRuntime::open(job)?)
    } else if place == Place::default() {
        Box::new(Htp::open(job)?)
    } else {
        Box::new(Split::open(job, place, &spec)?)
    };
    Ok(Decoder {
        engine,
        model: spec,
    })
}

/// The model that the candidate was made from.
pub fn model(job: &Job) -> Result<DecoderSpec> {
    job.input("candidate/model.json")?.facts.read()
}

/// What the orders of one candidate share.
pub struct Candidate {
    /// By the names of inputs: `candidate/...`.
    parts: Vec<(String, Part)>,
    tools: Vec<ToolFile>,
    demand: Demand,
    /// Whether the values of its inner tensors can be observed.
    pub has_ranges: bool,
}

impl Candidate {
    /// The candidate in slot `graph` or `context`.
    pub fn of(inputs: &Inputs) -> Result<Self> {
        let Some(context) = inputs.optional("context") else {
            return Candidate::of_graph(inputs);
        };
        let context_binaries = binaries(context)?;
        let mut demand = simulator_demand(context_binaries.iter().map(|(_, part)| *part));
        let mut tools = libraries(inputs, &SIMULATOR)?;
        let mut facts = vec![];
        for (_, part) in &context_binaries {
            facts.push(part.facts.read::<ContextFacts>()?);
        }
        if ContextFacts::place(&facts) != Place::default() {
            let on_cpu = demand::on_cpu_bytes(context)?;
            demand.memory_bytes = demand.memory_bytes.saturating_add(on_cpu);
            tools.extend(runtime(inputs)?);
        }
        let mut parts = vec![];
        for (name, part) in context_binaries {
            parts.push((format!("candidate/{name}"), part.clone()));
        }
        let model = context.part("model.json")?.clone();
        parts.push(("candidate/model.json".into(), model));
        for (name, part) in context.under(CPU) {
            parts.push((format!("candidate/{CPU}/{name}"), part.clone()));
        }
        Ok(Candidate {
            demand,
            parts,
            tools,
            has_ranges: false,
        })
    }

    /// The graph in slot `graph`, for ONNX Runtime.
    pub fn of_graph(inputs: &Inputs) -> Result<Self> {
        let graph = inputs.one("graph")?;
        let demand = demand::of_layers(graph, SLICE_ELEMENTS, |_, _| 0)?;
        let full_graphs = ROLES.map(|role| format!("{role}.onnx"));
        let mut parts = vec![];
        for (name, part) in &graph.parts {
            let name = name.as_str();
            // The graphs of shards are not run.
            if !name.ends_with(".onnx") || full_graphs.iter().any(|file| file == name) {
                parts.push((format!("candidate/{name}"), part.clone()));
            }
        }
        Ok(Candidate {
            demand,
            parts,
            tools: runtime(inputs)?,
            has_ranges: true,
        })
    }

    /// An order that runs the prefill graph only.
    pub fn order<T>(&self, name: &str, params: T) -> Order<T> {
        let mut order = self.full_order(name, params);
        order.inputs.retain(|input, _| !is_decode_graph(input));
        order
    }

    /// An order that runs both graphs.
    pub fn full_order<T>(&self, name: &str, params: T) -> Order<T> {
        let mut order = Order::new(name, params)
            .tools(self.tools.clone())
            .demand(self.demand);
        for (name, part) in &self.parts {
            order = order.input(name, part);
        }
        order
    }
}

fn is_decode_graph(input: &str) -> bool {
    let file = match input.rsplit_once('/') {
        Some((_, file)) => file,
        None => input,
    };
    file.starts_with("decode")
}

/// What simulating `binaries` one after the other needs. Measured: twelve times the bytes of the
/// largest one, and what the simulator needs for itself.
pub fn simulator_demand<'a>(binaries: impl Iterator<Item = &'a Part>) -> Demand {
    let sizes = binaries.map(|part| part.content.digest.size_bytes);
    let largest = sizes.max().unwrap_or(0);
    Demand {
        memory_bytes: largest.saturating_mul(12).saturating_add(1 << 30),
        threads: 1,
        isolation: Isolation::Process,
    }
}
