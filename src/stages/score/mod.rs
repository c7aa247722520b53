//! `score`: how close a candidate comes to the reference, token by token.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `reference` | | the `reference` stage to compare with; that of another file, to judge the file itself |
//! | `graph` | | the ONNX graphs, run in ONNX Runtime; or |
//! | `context` | | the context binary, run on the HTP simulator (built without weight sharing); what it leaves to the CPU, in ONNX Runtime |
//! | `windows` | all | how many of the reference's windows to score |
//! | `decode_steps` | 2 | how many of the greedy tokens to check by true decode steps; the others by one prefill |
//!
//! One order a window, one for the greedy continuation where the reference has one, and one for the
//! ranges of the graph's inner tensors.

pub mod decoder;
pub(super) mod demand;
mod htp;
mod lookup;
mod mask;
mod measure;
pub mod observe;
mod onnx_runtime;
mod split;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Demand, InputSpec, Inputs, Isolation, Job, Manifest, Order, Outputs, ParamProblem, Part,
    PartName, StageSpec, ToolFile, TypedStage,
};
use crate::base::{CanonJson, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::facts::ContextFacts;
use crate::model::shards::Place;

use super::device::{CPU, QNN, ROLES, binaries, binary_inputs, libraries};
pub use decoder::Decoder;
use decoder::Engine;
pub use htp::Htp;
pub use mask::{MaskMargin, Masks};
pub use measure::{GreedyScore, Ranges, WindowScore, measured, window};
use observe::SLICE_ELEMENTS;
pub use onnx_runtime::OnnxRuntime;
use split::Split;

/// The file that the order `ranges` gives beside its score.
pub const MASK: &str = "mask.json";

/// The runtime's file name, up to its version.
const RUNTIME: &str = "libonnxruntime.so";
/// What the simulator loads.
pub(super) const SIMULATOR: [&str; 2] = ["libQnnHtp.so", "libQnnSystem.so"];

/// See the module's table.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// How many of the reference's windows are scored; all of them by default.
    #[schemars(range(min = 1))]
    windows: Option<usize>,
    /// How many of the greedy tokens are checked by true decode steps; the others by one prefill.
    #[serde(default = "default_decode_steps")]
    decode_steps: usize,
}

fn default_decode_steps() -> usize {
    2
}

/// What an order measures.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "measure", rename_all = "kebab-case")]
pub enum Measure {
    /// Every token of one window.
    Window,
    /// The greedy continuation.
    Greedy {
        /// Tokens checked by true decode steps.
        decode_steps: usize,
    },
    /// The largest values of inner tensors over one window, and how far masked scores lie below
    /// visible ones.
    Ranges,
}

/// The stage.
pub struct Score;

impl TypedStage for Score {
    type Params = Params;
    type Order = Measure;
    const SPEC: StageSpec = StageSpec {
        kind: "score",
        version: 2,
        summary: "how close a candidate comes to the reference, token by token",
        gives: "score",
        inputs: &[
            InputSpec {
                name: "reference",
                accepts: &["reference"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "graph",
                accepts: &["onnx"],
                required: false,
                many: false,
            },
            InputSpec {
                name: "context",
                accepts: &["context-bin"],
                required: false,
                many: false,
            },
        ],
        params: &["windows", "decode_steps"],
        keyed: &[],
        reaches_outside: false,
        measures: true,
    };

    fn check(params: &Params, slots: &[&str]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        if slots.contains(&"graph") == slots.contains(&"context") {
            let problem = Problem::new(
                "kiln::plan::parameter",
                "a score is of either a `graph` or a `context`",
            )
            .help("give one of them; score the other in a stage of its own");
            problems.push(ParamProblem {
                path: String::new(),
                problem,
            });
        }
        if params.windows == Some(0) {
            let problem = Problem::new("kiln::plan::parameter", "no window would be scored");
            problems.push(ParamProblem {
                path: "windows".into(),
                problem,
            });
        }
        problems
    }

    fn tools(_: &Params, slots: &[&str]) -> Vec<&'static str> {
        if slots.contains(&"graph") {
            vec!["ort"]
        } else {
            vec![QNN, "ort?"]
        }
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Measure>>> {
        let reference = inputs.one("reference")?;
        let candidate = Candidate::of(inputs)?;
        let order = |name: &str, measure: Measure| candidate.order(name, measure);

        let mut orders = vec![];
        for (folder, (tokens, logits)) in windows(reference, params.windows)? {
            orders.push(
                order(folder, Measure::Window)
                    .input("tokens", tokens)
                    .input("logits", logits),
            );
            if orders.len() == 1 && candidate.has_ranges {
                orders.push(order("ranges", Measure::Ranges).input("tokens", tokens));
            }
        }
        if let Some(greedy) = reference.get("greedy.json") {
            let measure = Measure::Greedy {
                decode_steps: params.decode_steps,
            };
            orders.push(
                candidate
                    .reading("greedy", measure, |_| true)
                    .input("greedy", greedy),
            );
        }
        Ok(orders)
    }

    fn run(measure: Measure, job: &Job) -> Result<Outputs> {
        let mut outputs = Outputs::new();
        let mut write = |name: &str, value: &CanonJson| {
            let part = job.write(value.to_string().as_bytes(), CanonJson::default())?;
            Ok(outputs.insert(PartName::new(name)?, part))
        };
        let score = match measure {
            Measure::Window => CanonJson::of(&measure::window(
                job,
                &mut decoder(job)?,
                "tokens",
                "logits",
            )?)?,
            Measure::Greedy { decode_steps } => {
                CanonJson::of(&measure::greedy(job, &mut decoder(job)?, decode_steps)?)?
            }
            Measure::Ranges => {
                let (ranges, masks) = measure::ranges(job)?;
                write(MASK, &CanonJson::of(&masks)?)?;
                CanonJson::of(&ranges)?
            }
        };
        write("score.json", &score)?;
        Ok(outputs)
    }
}

fn decoder(job: &Job) -> Result<Decoder> {
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

/// The tokens and logits of the first `wanted` windows of a reference, or of all, by their names.
pub fn windows<'a>(
    reference: &'a Manifest,
    wanted: Option<usize>,
) -> Result<Vec<(&'a str, (&'a Part, &'a Part))>> {
    let names: Vec<&str> = folders(reference, "window-").collect();
    let wanted = wanted.unwrap_or(names.len());
    if wanted > names.len() {
        return Err(Problem::new(
            "kiln::score::windows",
            format!(
                "{wanted} windows are wanted, but the reference has {}",
                names.len()
            ),
        )
        .help("raise `windows` of the `reference` stage, or lower it here"));
    }
    let part = |folder: &str, name: &str| reference.part(&format!("{folder}/{name}"));
    let window = |folder: &&'a str| {
        Ok((
            *folder,
            (part(folder, "tokens.json")?, part(folder, "logits")?),
        ))
    };
    names.iter().take(wanted).map(window).collect()
}

/// The top folders of `manifest` that begin with `prefix`, in order.
fn folders<'a>(manifest: &'a Manifest, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let mut last = "";
    manifest.parts.keys().filter_map(move |name| {
        let (folder, _) = name.as_str().split_once('/')?;
        let is_new = folder.starts_with(prefix) && folder != last;
        last = folder;
        is_new.then_some(folder)
    })
}

/// What the orders of one candidate share.
pub(super) struct Candidate {
    parts: Vec<(String, Part)>,
    tools: Vec<ToolFile>,
    demand: Demand,
    /// Whether its inner tensors can be seen.
    has_ranges: bool,
}

impl Candidate {
    fn of(inputs: &Inputs) -> Result<Self> {
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
    pub(super) fn of_graph(inputs: &Inputs) -> Result<Self> {
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

    fn reading<T>(&self, name: &str, params: T, reads: impl Fn(&str) -> bool) -> Order<T> {
        let read = self.parts.iter().filter(|(name, _)| reads(name));
        let order = Order::new(name, params)
            .tools(self.tools.clone())
            .demand(self.demand);
        read.fold(order, |order, (name, part)| order.input(name, part))
    }
}

/// ONNX Runtime's library, whatever version its name carries.
fn runtime(inputs: &Inputs) -> Result<Vec<ToolFile>> {
    let tool = inputs.tools.get("ort").ok_or_else(|| {
        Problem::new(
            "kiln::tool_missing",
            "what a context binary leaves to the CPU runs in ONNX Runtime, and the tool `ort` is \
             not given",
        )
        .help("add it to [tools]: `ort = { pypi = \"onnxruntime==1.32.0\", sha256 = \"\" }`")
    })?;
    let files = tool.parts.keys();
    let base = files.filter_map(|path| path.as_str().rsplit('/').next());
    let name = base
        .into_iter()
        .find(|base| base.starts_with(RUNTIME))
        .unwrap_or(RUNTIME);
    inputs.tool_files("ort", &[name])
}

/// What it takes to simulate `binaries` one after the other. Measured: twelve times the bytes of
/// one, and what the simulator needs for itself.
pub(super) fn of_simulator<'a>(binaries: impl Iterator<Item = &'a Part>) -> Demand {
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
