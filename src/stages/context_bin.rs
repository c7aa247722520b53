//! `context-bin`: the graphs compiled for a chip, by libQnnHtp.
//!
//! One order for each use of a weight that the graphs state in their facts, which proves that the
//! simulated chip computes it right, and one that compiles, or one per shard.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Demand, Given, InputSpec, Inputs, Isolation, Job, Manifest, Order, Outputs, ParamProblem, Part,
    PartName, Smaller, StageSpec, TypedStage,
};
use crate::artifact::context::{
    BINARY, CONTAINER, ROLES, accompanied, on_cpu, pass_company, shards,
};
use crate::artifact::tools::{QNN, libraries};
use crate::base::{CanonJson, Code, Problem, Result};
use crate::compile::{Compilations, check_signatures, compile_bytes, device_uses, lowered};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::{by_name, role_of_blob};
use crate::model::facts::{ContextFacts, GraphFacts};
use crate::model::shards::{Place, Shard};
use crate::qnn::{
    Backend, Context, DeviceUse, GraphInfo, GraphOptions, HtpGraph, Soc, System, prove,
    without_time,
};

/// The parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The chip that is compiled for.
    #[schemars(extend("enum" = Soc::names()))]
    soc: String,
    /// Compile only this many of the graph's shards: the first, the last and some between. By
    /// default all.
    #[schemars(range(min = 1))]
    sample: Option<u32>,
    /// The graphs in the binary.
    #[serde(default = "both")]
    #[schemars(extend("items" = serde_json::json!({ "enum": ROLES }), "minItems" = 1, "uniqueItems" = true))]
    graphs: Vec<String>,
    /// Whether the graphs share one copy of the weights. The simulator cannot load such a binary.
    #[serde(default = "yes")]
    weight_sharing: bool,
    /// Whether a DLC around the binary is made too, for a `dlc` stage to output: the library can do
    /// it only while the binary is being made.
    #[serde(default)]
    container: bool,
    /// Optimization level of the compiler.
    #[serde(default = "hardest")]
    #[schemars(range(min = 1, max = 3))]
    optimization: u32,
    /// Tightly coupled memory (VTCM) that the graphs may use, in MiB; 0 stands for all that the
    /// chip has.
    #[serde(default)]
    #[schemars(range(max = MAX_VTCM_MB))]
    vtcm_mb: u32,
}

fn both() -> Vec<String> {
    ROLES.map(String::from).into()
}

fn yes() -> bool {
    true
}

fn hardest() -> u32 {
    3
}

/// More than any chip has.
const MAX_VTCM_MB: u32 = 64;

/// Peak memory of one matmul with libQnnHtp loaded (115 to 150 MB measured).
const PROOF_BYTES: u64 = 256 << 20;

/// Halves and little else, all of them in both files.
fn dlc_elements(dlc: &Manifest) -> (u64, u64) {
    let files = dlc
        .parts
        .iter()
        .filter(|(name, _)| name.as_str().ends_with(".dlc"));
    (
        0,
        files
            .map(|(_, part)| part.content.digest.size_bytes / 2)
            .max()
            .unwrap_or(0),
    )
}

/// So many of `shards`, the first and the last among them, or all.
fn sampled(shards: Vec<Shard>, count: Option<u32>) -> Vec<Shard> {
    let (last, count) = (
        shards.len() - 1,
        count
            .map_or(shards.len(), |count| count as usize)
            .min(shards.len()),
    );
    let steps = count.saturating_sub(1).max(1);
    (0..count)
        .filter_map(|step| shards.get(last * step / steps).copied())
        .collect()
}

/// What twice as many shards as `count` would need, and four times as many, up to a layer a shard.
fn more_shards(
    compilations: &Compilations,
    count: u32,
    model: &DecoderSpec,
) -> Result<Vec<Smaller>> {
    let (mut count, mut smaller) = (count.max(1), vec![]);
    while count < model.block_count() {
        count = count.saturating_mul(2).min(model.block_count());
        let advice = format!("give the `graph` stage `shards = {count}`");
        smaller.push(Smaller {
            memory_bytes: compilations.largest(count)?,
            advice,
        });
    }
    Ok(smaller)
}

/// One part of the work.
#[derive(Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "kebab-case")]
pub enum Work {
    /// Compute with a known matrix in one of the ways that the graphs use theirs.
    Prove {
        /// The chip.
        soc: String,
        /// The way.
        case: DeviceUse,
    },
    /// Compile the graphs.
    Compile(Compile),
    /// Hand on what describes the model, and what is the CPU's of it, beside the binaries of its
    /// shards.
    Describe,
}

/// What to compile, and how.
#[derive(Clone, Serialize, Deserialize)]
pub struct Compile {
    soc: String,
    graphs: Vec<String>,
    weight_sharing: bool,
    container: bool,
    optimization: u32,
    vtcm_mb: u32,
}

/// The stage.
pub struct ContextBin;

impl TypedStage for ContextBin {
    type Params = Params;
    type Order = Work;
    const SPEC: StageSpec = StageSpec {
        kind: "context-bin",
        version: 4,
        summary: "the graphs compiled for a chip: a context binary for its HTP",
        output: "context-bin",
        inputs: &[
            InputSpec {
                name: "graph",
                meaning: "The graphs to compile. Either `graph` or `dlc` is given.",
                accepts: &["onnx"],
                required: false,
                many: false,
            },
            InputSpec {
                name: "dlc",
                meaning: "DLCs made from graphs, to be compiled.",
                accepts: &["dlc"],
                required: false,
                many: false,
            },
        ],
        params: &[
            "soc",
            "sample",
            "graphs",
            "weight_sharing",
            "container",
            "optimization",
            "vtcm_mb",
        ],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn check(_: &Params, given: &[Given]) -> Vec<ParamProblem> {
        if Given::fills(given, "graph") != Given::fills(given, "dlc") {
            return vec![];
        }
        let message = "a context binary is made of either a `graph` or a `dlc`";
        let problem = Problem::new(Code::PlanParameter, message).help("give one of them");
        vec![ParamProblem {
            path: String::new(),
            problem,
        }]
    }

    fn tools(_: &Params, _: &[Given]) -> Vec<&'static str> {
        vec![QNN]
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Work>>> {
        let tools = libraries(inputs, &["libQnnHtp.so", "libQnnSystem.so"])?;
        let Params {
            soc,
            sample,
            graphs,
            weight_sharing,
            container,
            optimization,
            vtcm_mb,
        } = params;
        let (given, extension) = match inputs.optional("graph") {
            Some(graph) => (graph, "onnx"),
            None => (inputs.one("dlc")?, "dlc"),
        };
        let model: DecoderSpec = given.part("model.json")?.facts.read()?;
        let cut = shards(given)?;
        let is_whole = cut.is_empty();
        let place = Place::of(&cut);
        let tensors = by_name(&model);
        let reads = |shard: &Shard, name: &str| {
            role_of_blob(&tensors, name).is_some_and(|role| shard.reads(role, &model))
        };
        let process = |memory_bytes| Demand {
            memory_bytes,
            threads: 1,
            isolation: Isolation::Process,
        };
        let compiled_shards = if is_whole {
            vec![Shard::whole(&model)]
        } else {
            sampled(cut.clone(), sample)
        };
        let mut compiled_graphs: Vec<GraphFacts> = vec![];
        for shard in &compiled_shards {
            for role in &graphs {
                let part = given.part(&format!("{}.{extension}", shard.graph_stem(role)))?;
                compiled_graphs.push(part.facts.read()?);
            }
        }
        let mut orders = vec![];
        for case in device_uses(compiled_graphs.iter())? {
            let soc = soc.clone();
            let order = Order::new(format!("proof/{case}"), Work::Prove { soc, case });
            orders.push(order.tools(tools.clone()).demand(process(PROOF_BYTES)));
        }

        let compile = Compile {
            soc,
            graphs,
            weight_sharing,
            container,
            optimization,
            vtcm_mb,
        };
        let compilations =
            Compilations::new(&model, given.under("weights"), compile.graphs.len(), place);
        let of_graphs = extension == "onnx";
        let smaller = if of_graphs {
            more_shards(&compilations, cut.len() as u32, &model)?
        } else {
            vec![]
        };
        for shard in compiled_shards {
            let weights = given
                .under("weights")
                .filter(|(name, _)| reads(&shard, name));
            let memory_bytes = match of_graphs {
                true => compilations.bytes(&shard),
                false => compile_bytes(dlc_elements(given), compile.graphs.len() as u64),
            };
            let mut order = Order::new(shard.folder(), Work::Compile(compile.clone()))
                .tools(tools.clone())
                .demand(process(memory_bytes))
                .smaller(smaller.clone());
            for role in &compile.graphs {
                let part = given.part(&format!("{}.{extension}", shard.graph_stem(role)))?;
                order = order.input(format!("{role}.{extension}"), part);
            }
            order = weights.fold(order, |order, (name, part)| {
                order.input(format!("weights/{name}"), part)
            });
            orders.push(if is_whole {
                accompanied(order, given)?
            } else {
                order
            });
        }
        if !is_whole {
            let order = accompanied(Order::new("", Work::Describe), given)?;
            let on_cpu = on_cpu(given, &compile.graphs, place, &model)?;
            orders.push(
                on_cpu
                    .iter()
                    .fold(order, |order, (name, part)| order.input(name, part)),
            );
        }
        Ok(orders)
    }

    fn run(work: Work, job: &Job) -> Result<Outputs> {
        match work {
            Work::Prove { soc, case } => {
                let proof = prove(&job.tool_folder(QNN)?, Soc::named(&soc)?, case)?;
                let text = CanonJson::of(&proof)?.to_string();
                Ok(BTreeMap::from([(
                    PartName::new("figures.json")?,
                    job.write(text.as_bytes(), CanonJson::default())?,
                )]))
            }
            Work::Compile(compile) => compile.run(job, &job.tool_folder(QNN)?),
            Work::Describe => pass_company(job),
        }
    }
}

impl Compile {
    fn run(&self, job: &Job, folder: &Path) -> Result<Outputs> {
        let soc = Soc::named(&self.soc)?;
        let system = System::open(folder)?;
        let context = Context::new(&Backend::htp(folder, soc)?, self.weight_sharing)?;
        let from_graph = job.input(&format!("{}.onnx", self.graphs[0])).is_ok();
        let mut lowered = if from_graph {
            lowered(job, &self.graphs)?
        } else {
            vec![]
        }
        .into_iter();
        let (mut facts, mut asked) = (BTreeMap::new(), vec![]);
        // A composed graph may refer to its DLC until the binary is written.
        let mut dlcs = vec![];
        for (index, role) in self.graphs.iter().enumerate() {
            job.check_cancelled()?;
            job.progress(index as u64, self.graphs.len() as u64, "graphs");
            let (input, graph) = match lowered.next() {
                Some(graph) => (
                    format!("{role}.onnx"),
                    context.build(&graph, &GraphOptions::Htp(self.options()))?,
                ),
                None => {
                    let input = format!("{role}.dlc");
                    let dlc = system.open_dlc(&job.path(&input)?)?;
                    let graph = self.compose(&dlc, &context, role)?;
                    dlcs.push(dlc);
                    (input, graph)
                }
            };
            facts.insert(role.clone(), job.input(&input)?.facts.read::<GraphFacts>()?);
            asked.push(graph);
        }
        job.progress(self.graphs.len() as u64, self.graphs.len() as u64, "graphs");
        let binary = context.binary()?;
        let info = system.binary_info(&binary)?;
        check_signatures("context binary", &asked, &info.graphs)?;
        if info.soc_model != soc.model {
            return Err(Problem::new(
                Code::DeviceReadBack,
                format!(
                    "the context binary says it is for SoC model {}, not {}",
                    info.soc_model, soc.model
                ),
            ));
        }
        let facts = ContextFacts {
            soc: self.soc.clone(),
            weight_sharing: self.weight_sharing,
            graphs: facts,
        };
        let mut outputs = BTreeMap::from([
            (
                PartName::new(BINARY)?,
                job.write(&binary, CanonJson::of(&facts)?)?,
            ),
            (PartName::new("info.json")?, write_json(job, &info)?),
        ]);
        drop(binary);
        outputs.extend(pass_company(job)?);
        if self.container {
            let mut dlc = system.wrap(&context)?;
            without_time(&mut dlc)?;
            outputs.insert(
                PartName::new(CONTAINER)?,
                job.write(&dlc, CanonJson::of(&facts)?)?,
            );
        }
        Ok(outputs)
    }

    fn options(&self) -> HtpGraph {
        HtpGraph {
            optimization: self.optimization,
            vtcm_mb: self.vtcm_mb,
        }
    }

    fn compose(&self, dlc: &crate::qnn::Dlc, context: &Context, role: &str) -> Result<GraphInfo> {
        let mut graphs = dlc.graphs()?;
        let (Some(graph), true) = (graphs.pop(), graphs.is_empty()) else {
            return Err(Problem::new(
                Code::DeviceDlc,
                format!("{role}.dlc does not hold just one graph"),
            ));
        };
        dlc.compose(context, &graph.name, self.options())?;
        Ok(graph)
    }
}

fn write_json(job: &Job, value: &impl Serialize) -> Result<Part> {
    job.write(
        CanonJson::of(value)?.to_string().as_bytes(),
        CanonJson::default(),
    )
}
