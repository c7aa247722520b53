//! `context-bin`: the graphs compiled for a chip, by libQnnHtp.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `graph` | | the ONNX graphs to lower and compile; or |
//! | `dlc` | | the DLCs to compose and compile |
//! | `soc` | | the chip: `sm8450`, `sm8550`, `sm8650`, `sm8750`, `sm8850` |
//! | `sample` | all | so many of the graph's shards only: the first, the last, and some between |
//! | `graphs` | `["prefill", "decode"]` | which graphs |
//! | `weight_sharing` | `true` | whether graphs share weights; the simulator cannot load it then |
//! | `container` | `false` | also make the part `container`: a DLC around the binary, which a stage `dlc` hands on |
//! | `optimization` | 3 | effort of the compiler, 1 to 3 |
//! | `vtcm_mb` | 0 | tightly coupled memory in MiB; 0 is all that the chip has |
//!
//! One order a weight encoding, which proves that the simulated chip computes it right, and one
//! that compiles.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Demand, InputSpec, Inputs, Isolation, Job, Manifest, Order, Outputs, ParamProblem, Part,
    PartName, Smaller, StageSpec, TypedStage,
};
use crate::artifact::context::{
    BINARY, CONTAINER, ROLES, accompanied, on_cpu, pass_company, shards,
};
use crate::artifact::tools::{QNN, libraries};
use crate::base::{CanonJson, Problem, Result};
use crate::compile::{Compilations, check_signatures, compile_bytes, encodings, lowered};
use crate::model::facts::{ContextFacts, GraphFacts, ModelFacts};
use crate::model::shards::{Place, Shard};
use crate::qnn::{
    Backend, Context, GraphInfo, GraphOptions, HtpGraph, Soc, System, WeightEncoding, prove,
    without_time,
};

/// See the module's table.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The chip.
    #[schemars(extend("enum" = Soc::names()))]
    soc: String,
    /// So many of the graph's shards only: the first, the last, and some between.
    #[schemars(range(min = 1))]
    sample: Option<u32>,
    /// Which graphs it holds.
    #[serde(default = "both")]
    #[schemars(extend("items" = serde_json::json!({ "enum": ROLES }), "minItems" = 1, "uniqueItems" = true))]
    graphs: Vec<String>,
    /// The graphs share one copy of the weights; the simulator cannot load such a binary.
    #[serde(default = "yes")]
    weight_sharing: bool,
    /// Also make a DLC around the binary, for a stage `dlc` to hand on.
    #[serde(default)]
    container: bool,
    /// Effort of the compiler.
    #[serde(default = "hardest")]
    #[schemars(range(min = 1, max = 3))]
    optimization: u32,
    /// Tightly coupled memory that the graphs may use, in MiB; 0 is all that the chip has.
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
    model: &ModelFacts,
) -> Result<Vec<Smaller>> {
    let (mut count, mut smaller) = (count.max(1), vec![]);
    while count < model.block_count {
        count = count.saturating_mul(2).min(model.block_count);
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
    /// Multiply a known matrix in one encoding.
    Prove {
        /// The chip.
        soc: String,
        /// How the matrix is held.
        encoding: WeightEncoding,
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
        version: 2,
        summary: "compiles the graphs for a chip: a context binary for its HTP",
        gives: "context-bin",
        inputs: &[
            InputSpec {
                name: "graph",
                accepts: &["onnx"],
                required: false,
                many: false,
            },
            InputSpec {
                name: "dlc",
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

    fn check(_: &Params, slots: &[&str]) -> Vec<ParamProblem> {
        if slots.contains(&"graph") != slots.contains(&"dlc") {
            return vec![];
        }
        let message = "a context binary is made of either a `graph` or a `dlc`";
        let problem = Problem::new("kiln::plan::parameter", message).help("give one of them");
        vec![ParamProblem {
            path: String::new(),
            problem,
        }]
    }

    fn tools(_: &Params, _: &[&str]) -> Vec<&'static str> {
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
        let model: ModelFacts = given.part("model.json")?.facts.read()?;
        let cut = shards(given)?;
        let is_whole = cut.is_empty();
        let place = Place::of(&cut);
        let is_read = |name: &str| is_whole || cut.iter().any(|shard| shard.reads(name, &model));
        // A DLC holds halves only; `dlc` refuses all else.
        let encodings = if extension == "onnx" {
            encodings(given, is_read)?
        } else {
            vec![WeightEncoding::F16]
        };
        let process = |memory_bytes| Demand {
            memory_bytes,
            threads: 1,
            isolation: Isolation::Process,
        };
        let mut orders: Vec<_> = encodings
            .into_iter()
            .map(|encoding| {
                Order::new(
                    format!("proof/{encoding}"),
                    Work::Prove {
                        soc: soc.clone(),
                        encoding,
                    },
                )
                .tools(tools.clone())
                .demand(process(PROOF_BYTES))
            })
            .collect();

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
        for shard in if is_whole {
            vec![Shard::whole(&model)]
        } else {
            sampled(cut, sample)
        } {
            let weights = given
                .under("weights")
                .filter(|(name, _)| shard.reads(name, &model));
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
            Work::Prove { soc, encoding } => {
                let proof = prove(&job.tool_folder(QNN)?, Soc::named(&soc)?, encoding)?;
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
                "kiln::device::read_back",
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
                "kiln::device::dlc",
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
