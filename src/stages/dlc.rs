//! `dlc`: the graphs as Qualcomm's own exchange format, by libQnnIr; or a DLC around a finished
//! context binary.
//!
//! From a `graph`: `prefill.dlc` and `decode.dlc` with `f16` weights, for Netron, for other tools
//! and for `context-bin`. From a `context`: `model.dlc`, one per shard, a container of the binary
//! with any weights. `context-bin` makes it (`container = true`), because the library wraps a
//! context only before it is closed.
//!
//! libQnnIr 2.51 accepts block-quantized weights and then writes a DLC without their scales, so
//! such graphs are refused here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Manifest, Order, Outputs, ParamProblem, PartName,
    StageSpec, TypedStage,
};
use crate::artifact::context::{CONTAINER, ROLES, add_shared_parts, pass_shared_parts, shards};
use crate::artifact::tools::{QNN, libraries};
use crate::base::{Code, Context as _, Problem, Result};
use crate::compile::{Elements, check_signatures, lower_graphs, process_demand};
use crate::model::decoder::shards::{OuterModule, Place};
use crate::model::facts::ContextFacts;
use crate::model::weight::{WeightFacts, blob_owner};
use crate::qnn::{Backend, Context, GraphOptions, System, without_time};

/// It has none.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {}

/// What to write.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// The graphs.
    Graphs,
    /// A container of a context binary.
    Container,
    /// Pass on the parts that all shards share.
    Describe,
}

/// The stage.
pub struct Dlc;

impl TypedStage for Dlc {
    type Params = Params;
    type Order = Work;
    const SPEC: StageSpec = StageSpec {
        kind: "dlc",
        version: 4,
        summary: "the graphs, or a finished context binary, as DLC",
        output: "dlc",
        inputs: &[
            InputSpec {
                name: "graph",
                meaning: "The graphs, each written as a DLC of its own; their weights must be \
                          plain numbers (`f16`). Either `graph` or `context` is given.",
                accepts: &["onnx"],
                required: false,
                many: false,
            },
            InputSpec {
                name: "context",
                meaning: "A binary made with `container = true`, to be output in its DLC.",
                accepts: &["context-bin"],
                required: false,
                many: false,
            },
        ],
        params: &[],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn check(_: &Params, given: &[InputStage]) -> Vec<ParamProblem> {
        if InputStage::fills(given, "graph") != InputStage::fills(given, "context") {
            return vec![];
        }
        let problem = Problem::new(
            Code::PlanParameter,
            "a DLC is made of either a `graph` or a `context`",
        )
        .help("give one of them");
        vec![ParamProblem {
            path: String::new(),
            problem,
        }]
    }

    fn tools(_: &Params, _: &[InputStage]) -> Vec<&'static str> {
        vec![QNN]
    }

    fn expand(_: Params, inputs: &Inputs) -> Result<Vec<Order<Work>>> {
        if let Some(graph) = inputs.optional("graph") {
            refuse_modules_on_cpu(graph)?;
            refuse_blocks(graph)?;
            let elements = Elements::of_weights(graph.under("weights"));
            let mut order = Order::new("", Work::Graphs)
                .tools(libraries(inputs, &["libQnnIr.so", "libQnnSystem.so"])?)
                .demand(process_demand(graph_bytes(elements)));
            for (name, part) in &graph.parts {
                order = order.input(name.as_str(), part);
            }
            return Ok(vec![order]);
        }
        let context = inputs.one("context")?;
        let mut containers = vec![];
        for (name, part) in &context.parts {
            let name = name.as_str();
            let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
            if file == CONTAINER {
                containers.push((folder, part));
            }
        }
        if containers.is_empty() {
            return Err(Problem::new(
                Code::DlcNoContainer,
                "the context binary was made without its container",
            )
            .help(
                "set `container = true` in the `context-bin` stage: the library wraps a context \
                 only while it is being made",
            ));
        }
        let tools = libraries(inputs, &["libQnnSystem.so"])?;
        let mut orders = vec![];
        for (folder, container) in containers {
            let memory_bytes = container
                .content
                .digest
                .size_bytes
                .saturating_add(256 << 20);
            let order = Order::new(folder, Work::Container)
                .input(CONTAINER, container)
                .tools(tools.clone())
                .demand(process_demand(memory_bytes));
            orders.push(order);
        }
        let description = match orders.pop_if(|order| order.name.is_empty()) {
            Some(order) => order,
            None => Order::new("", Work::Describe),
        };
        orders.push(add_shared_parts(description, context)?);
        Ok(orders)
    }

    fn run(work: Work, job: &Job) -> Result<Outputs> {
        let mut outputs = match work {
            Work::Graphs => graphs(job, &job.tool_folder(QNN)?)?,
            Work::Container => container(job, &job.tool_folder(QNN)?)?,
            Work::Describe => Outputs::new(),
        };
        outputs.extend(pass_shared_parts(job)?);
        Ok(outputs)
    }
}

/// libQnnIr holds the weights in fp16 and writes them; then the file is read once more to remove
/// the time stamp. Measured: 5.6 bytes per element.
fn graph_bytes(elements: Elements) -> u64 {
    elements.values.saturating_mul(6).saturating_add(256 << 20)
}

/// Refuses a graph that leaves the embedding or the head to the CPU.
fn refuse_modules_on_cpu(graph: &Manifest) -> Result<()> {
    let modules: Vec<&str> = Place::of(&shards(graph)?)
        .on_cpu()
        .map(OuterModule::name)
        .collect();
    if modules.is_empty() {
        return Ok(());
    }
    let modules = modules.join(" and ");
    Err(Problem::new(
        Code::DlcPlace,
        format!("a DLC holds the whole model, and this graph leaves {modules} to the CPU"),
    )
    .help(
        "leave `place` out of the `graph` stage, or wrap the finished context binary: slot \
         `context`",
    ))
}

/// Refuses weights that are not plain numbers.
fn refuse_blocks(graph: &Manifest) -> Result<()> {
    let mut blocks = vec![];
    for (name, part) in graph.under("weights") {
        let facts: WeightFacts = part.facts.read()?;
        if facts.is_main() && !facts.encoding.is_plain() {
            blocks.push(blob_owner(name));
        }
    }
    let Some(first) = blocks.first() else {
        return Ok(());
    };
    let others = if blocks.len() > 1 {
        format!(" and {} other tensors", blocks.len() - 1)
    } else {
        String::new()
    };
    Err(Problem::new(
        Code::DlcEncoding,
        format!(
            "a DLC cannot hold the block-quantized weights of `{first}`{others}: libQnnIr 2.51 \
             loses their scales"
        ),
    )
    .help(
        "use scheme `f16` in the `requant` stage, or wrap the finished context binary: slot \
         `context`",
    ))
}

/// Writes the graphs as DLCs and reads them back.
fn graphs(job: &Job, folder: &Path) -> Result<Outputs> {
    let backend = Backend::ir(folder)?;
    let system = System::open(folder)?;
    let mut outputs = Outputs::new();
    for (role, graph) in ROLES.into_iter().zip(lower_graphs(job, &ROLES)?) {
        job.check_cancelled()?;
        let file = format!("{role}.dlc");
        let path = job.scratch()?.join(&file);
        let context = Context::new(&backend, false)?;
        let expected = context.build(&graph, &GraphOptions::ir(&path)?)?;
        drop(context);
        let mut dlc = fs::read(&path).context(Code::Io, || format!("read {}", path.display()))?;
        without_time(&mut dlc)?;
        fs::write(&path, &dlc).context(Code::Io, || format!("write {}", path.display()))?;
        check_signatures(&file, &[expected], &system.open_dlc(&path)?.graphs()?)?;
        fs::remove_file(&path).context(Code::Io, || format!("remove {}", path.display()))?;
        let facts = job.input(&format!("{role}.onnx"))?.facts.clone();
        outputs.insert(PartName::new(file)?, job.write(&dlc, facts)?);
    }
    Ok(outputs)
}

/// Passes on the container. It must open and hold one binary, with the graphs that its facts name.
fn container(job: &Job, folder: &Path) -> Result<Outputs> {
    let facts: ContextFacts = job.input(CONTAINER)?.facts.read()?;
    let binaries = System::open(folder)?
        .open_dlc(&job.path(CONTAINER)?)?
        .binaries()?;
    let mut found = vec![];
    for binary in &binaries {
        for graph in &binary.graphs {
            found.push(graph.name.as_str());
        }
    }
    let mut expected = vec![];
    for graph in facts.graphs.values() {
        expected.push(graph.name.as_str());
    }
    found.sort();
    expected.sort();
    if binaries.len() != 1 || found != expected {
        return Err(Problem::new(
            Code::DeviceReadBack,
            format!(
                "the container holds {} binaries with graphs {found:?}, not one with {expected:?}",
                binaries.len()
            ),
        ));
    }
    Ok(BTreeMap::from([(
        PartName::new("model.dlc")?,
        job.pass(CONTAINER)?,
    )]))
}
