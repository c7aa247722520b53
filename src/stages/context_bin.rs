//! `context-bin`: the graphs compiled for a chip, by libQnnHtp.
//!
//! One order for each use of a weight that the graphs state in their facts, which proves that the
//! simulated chip computes it right. One order that compiles, or one per shard.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Order, Outputs, ParamProblem, Part, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::context::{
    BINARY, CONTAINER, ROLES, add_shared_parts, both_roles, on_cpu, pass_shared_parts,
};
use crate::artifact::tools::{QNN, libraries};
use crate::base::{CanonJson, Code, Problem, Result};
use crate::compile::{CompiledShards, check_signatures, device_uses, lower_graphs, process_demand};
use crate::model::facts::{ContextFacts, GraphFacts};
use crate::qnn::{
    Backend, BinaryInfo, Chip, Context, DataType, DeviceGraph, DeviceUse, GraphInfo, GraphOptions,
    HtpGraph, Numbers, Soc, System, prove, without_time,
};

/// The parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The chip that is compiled for, by one of its names, or as `soc-N` for the chip whose
    /// `socModel` is N.
    #[schemars(extend("anyOf" = soc_forms()))]
    soc: String,
    /// Compile only this many of the graph's shards: the first, the last and some between. By
    /// default all.
    #[schemars(range(min = 1))]
    sample: Option<u32>,
    /// The graphs in the binary.
    #[serde(default = "both_roles")]
    #[schemars(extend("items" = json!({ "enum": ROLES }), "minItems" = 1, "uniqueItems" = true))]
    graphs: Vec<String>,
    /// Whether the graphs share one copy of the weights. The simulator cannot load such a binary.
    #[serde(default = "default_weight_sharing")]
    weight_sharing: bool,
    /// Whether a DLC around the binary is made too, for a `dlc` stage to output: the library can do
    /// it only while the binary is being made.
    #[serde(default)]
    container: bool,
    /// Optimization level of the compiler.
    #[serde(default = "default_optimization")]
    #[schemars(range(min = 1, max = 3))]
    optimization: u32,
    /// Tightly coupled memory (VTCM) that the graphs may use, in MiB; 0 stands for all that the
    /// chip has.
    #[serde(default)]
    #[schemars(range(max = MAX_VTCM_MB))]
    vtcm_mb: u32,
}

fn default_weight_sharing() -> bool {
    true
}

fn default_optimization() -> u32 {
    HtpGraph::default().optimization
}

/// The names of chips, for editors. [`Soc::named`] checks them.
fn soc_forms() -> Value {
    let names: Vec<&str> = Chip::all().iter().flat_map(Chip::names).collect();
    json!([{ "enum": names }, { "pattern": "^soc-(0|[1-9][0-9]*)$" }])
}

/// The least architecture whose HTP multiplies codes of 16 bits by each other.
const U16_CACHE_ARCH: u32 = 73;

/// No chip has as much.
const MAX_VTCM_MB: u32 = 64;

/// Peak memory of one matmul with libQnnHtp loaded (115 to 150 MB measured).
const PROOF_BYTES: u64 = 256 << 20;

/// The work of one order.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "kebab-case")]
pub enum Work {
    /// Run a matmul with a known matrix that is encoded like one of the graphs'.
    Prove {
        /// The chip.
        soc: String,
        /// The encoding and operator.
        case: DeviceUse,
    },
    /// Compile the graphs.
    Compile(Compile),
    /// Pass on the parts that all shards share.
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
        version: 7,
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

    fn check(params: &Params, given: &[InputStage]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        let mut add = |path: &str, problem| {
            let path = path.into();
            problems.push(ParamProblem { path, problem });
        };
        match Soc::named(&params.soc) {
            Ok(soc) => {
                if let Some(chip) = soc.chip
                    && params.vtcm_mb > chip.vtcm_mb
                {
                    add("vtcm_mb", too_much_vtcm(chip, params.vtcm_mb));
                }
                for graph in given.iter().filter(|input| input.slot == "graph") {
                    if let Some(problem) = check_graph(graph, soc) {
                        add("soc", problem);
                    }
                }
            }
            Err(problem) => add("soc", problem),
        }
        if InputStage::fills(given, "graph") == InputStage::fills(given, "dlc") {
            let message = "a context binary is made of either a `graph` or a `dlc`";
            let problem = Problem::new(Code::PlanParameter, message).help("give one of them");
            add("", problem);
        }
        problems
    }

    fn tools(_: &Params, _: &[InputStage]) -> Vec<&'static str> {
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
        let (source, extension) = match inputs.optional("graph") {
            Some(graph) => (graph, "onnx"),
            None => (inputs.one("dlc")?, "dlc"),
        };
        let shards = CompiledShards::new(source, extension, &graphs, sample)?;
        let chip = Soc::named(&soc)?;
        // Whatever it is called, the actions are the same.
        let soc = chip.name().to_string();
        let mut orders = vec![];
        for case in device_uses(&shards.graphs()?)? {
            // The order that compiles refuses the graph, with the name of a tensor.
            if extension == "onnx" && case.computes_in_f16() && !chip.has_f16() {
                continue;
            }
            check_use(case, chip)?;
            let soc = soc.clone();
            let order = Order::new(format!("proof/{case}"), Work::Prove { soc, case })
                .tools(tools.clone())
                .demand(process_demand(PROOF_BYTES));
            orders.push(order);
        }

        let compile = Work::Compile(Compile {
            soc,
            graphs: graphs.clone(),
            weight_sharing,
            container,
            optimization,
            vtcm_mb,
        });
        for mut order in shards.orders(&compile, &tools)? {
            if !shards.is_cut() {
                order = add_shared_parts(order, source)?;
            }
            orders.push(order);
        }
        if shards.is_cut() {
            let mut order = add_shared_parts(Order::new("", Work::Describe), source)?;
            for (name, part) in on_cpu(source, &graphs, shards.place(), &shards.model)? {
                order = order.input(name, part);
            }
            orders.push(order);
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
            Work::Describe => pass_shared_parts(job),
        }
    }
}

impl Compile {
    fn run(&self, job: &Job, folder: &Path) -> Result<Outputs> {
        let soc = Soc::named(&self.soc)?;
        let from_graph = job.input(&format!("{}.onnx", self.graphs[0])).is_ok();
        let device_graphs = if from_graph {
            lower_graphs(job, &self.graphs)?
        } else {
            vec![]
        };
        for graph in &device_graphs {
            check_types(graph, soc)?;
        }
        let system = System::open(folder)?;
        let context = Context::new(&Backend::htp(folder, soc)?, self.weight_sharing)?;
        let mut device_graphs = device_graphs.into_iter();
        let (mut facts, mut expected) = (BTreeMap::new(), vec![]);
        // A composed graph may refer to its DLC until the binary is written.
        let mut dlcs = vec![];
        for (index, role) in self.graphs.iter().enumerate() {
            job.check_cancelled()?;
            job.progress(index as u64, self.graphs.len() as u64, "graphs");
            let input;
            if let Some(graph) = device_graphs.next() {
                input = format!("{role}.onnx");
                expected.push(context.build(&graph, &GraphOptions::Htp(self.options()))?);
            } else {
                input = format!("{role}.dlc");
                let dlc = system.open_dlc(&job.path(&input)?)?;
                expected.push(self.compose(&dlc, &context, role)?);
                dlcs.push(dlc);
            }
            facts.insert(role.clone(), job.input(&input)?.facts.read::<GraphFacts>()?);
        }
        job.progress(self.graphs.len() as u64, self.graphs.len() as u64, "graphs");
        let binary = context.binary()?;
        let info = system.binary_info(&binary)?;
        check_signatures("context binary", &expected, &info.graphs)?;
        check_chip(&info, soc)?;
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
        outputs.extend(pass_shared_parts(job)?);
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

fn too_much_vtcm(chip: &Chip, found: u32) -> Problem {
    let message = format!(
        "expected at most {}, the VTCM of {} in MiB, found {found}",
        chip.vtcm_mb, chip.name
    );
    Problem::new(Code::PlanParameter, message)
        .help("the compiler would accept it; the binary would not load on the chip")
}

/// What the parameters of a `graph` stage ask of a chip and it does not have.
fn check_graph(graph: &InputStage, soc: Soc) -> Option<Problem> {
    let chip = soc.chip?;
    let (name, stage) = (chip.name, &graph.stage);
    if !soc.has_f16() && !graph.has("float", "never") {
        let message = format!("the HTP of {name} has no fp16, and `{stage}` computes in it");
        return Some(Problem::new(Code::QnnNoF16, message).help(format!(
            "in `{stage}`: `activations = \"u16\"`, `float = \"never\"`, `kv = \"u8\"`, \
             `key_centre = \"none\"` and a `calibration`"
        )));
    }
    if chip.arch < U16_CACHE_ARCH && graph.has("float", "never") && graph.has("kv", "u16") {
        let message = format!(
            "the HTP of {name} (v{}) does not multiply 16-bit codes by the 16-bit codes of a cache",
            chip.arch
        );
        return Some(
            Problem::new(Code::QnnEncoding, message).help(format!("in `{stage}`: `kv = \"u8\"`")),
        );
    }
    None
}

/// Refuses weights in a form that the chip does not take.
fn check_use(case: DeviceUse, soc: Soc) -> Result<()> {
    if !case.has_float_blocks() || soc.computes_with(Numbers::Blocks) {
        return Ok(());
    }
    let message =
        format!("the HTP of {soc} does not take weights in blocks with scales in fp16 ({case})");
    Err(Problem::new(Code::QnnEncoding, message)
        .help("choose `int8-channel`, `int4-channel`, `lpbq-*` or `f16` in the `requant` stage"))
}

/// Compares what the binary says about its chip with the table of chips.
fn check_chip(info: &BinaryInfo, soc: Soc) -> Result<()> {
    let mut wrong = vec![];
    if info.soc_model != soc.model {
        wrong.push(format!(
            "for SoC model {}, not {}",
            info.soc_model, soc.model
        ));
    }
    if let Some(chip) = soc.chip {
        if info.arch != Some(chip.arch) {
            let found = info
                .arch
                .map_or("an unknown HTP".into(), |arch| format!("v{arch}"));
            wrong.push(format!("for {found}, not v{}", chip.arch));
        }
        for graph in &info.graphs {
            if let Some(memory) = graph.memory
                && memory.vtcm_bytes > chip.vtcm_mb << 20
            {
                let found = memory.vtcm_bytes >> 20;
                wrong.push(format!("for {found} MiB of VTCM, not {}", chip.vtcm_mb));
            }
        }
    }
    wrong.dedup();
    if wrong.is_empty() {
        return Ok(());
    }
    let message = format!("the context binary is {}", wrong.join(", "));
    Err(Problem::new(Code::DeviceReadBack, message))
}

/// Refuses a graph with a tensor in fp16 for a chip without fp16.
fn check_types(graph: &DeviceGraph, soc: Soc) -> Result<()> {
    for tensor in &graph.tensors {
        if tensor.data_type == DataType::Float16 {
            soc.require_f16(&format!("`{}` of graph `{}`", tensor.name, graph.name))?;
        }
    }
    Ok(())
}

fn write_json(job: &Job, value: &impl Serialize) -> Result<Part> {
    job.write(
        CanonJson::of(value)?.to_string().as_bytes(),
        CanonJson::default(),
    )
}
