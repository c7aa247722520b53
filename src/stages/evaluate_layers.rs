//! `evaluate-layers`: runs some shards on the HTP simulator, each by itself, for models that would
//! take hours on it.
//!
//! ONNX Runtime computes the values of the uncut graph in f32. The simulator computes the outputs
//! of a shard from the inputs of this graph, and they are compared with the outputs of this graph.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Manifest, Order, Outputs, Part, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::context::is_binary;
use crate::artifact::layer_evaluation::{Computed, LAYERS, ShardScore, ValueScore};
use crate::artifact::tools::{QNN, libraries};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::shards::{OuterModule, ROWS, Shard};
use crate::model::facts::{ContextFacts, GraphFacts};
use crate::model::onnx::{Checked, decode};
use crate::run::decoder::{Engine, Graph, Tensor, first_inputs};
use crate::run::{Candidate, Htp, Observer, PREFILL, SIMULATOR, model, observe, simulator_demand};

/// It has no parameters.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {}

/// The stage.
pub struct EvaluateLayers;

impl TypedStage for EvaluateLayers {
    type Params = Params;
    type Order = Params;
    const SPEC: StageSpec = StageSpec {
        kind: "evaluate-layers",
        version: 1,
        summary: "what some layers compute on the simulator from the graph's own values",
        output: "layer-evaluation",
        inputs: &[
            InputSpec {
                name: "reference",
                meaning: "The reference whose first window is run.",
                accepts: &["reference"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "graph",
                meaning: "A graph that is cut into shards. The whole prefill graph runs in ONNX \
                          Runtime.",
                accepts: &["onnx"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "context",
                meaning: "Binaries of some or all of these shards, best with `graphs = \
                          [\"prefill\"]` and a `sample`.",
                accepts: &["context-bin"],
                required: true,
                many: false,
            },
        ],
        params: &[],
        keyed: &[],
        reaches_outside: false,
        measures: true,
    };

    fn tools(_: &Params, _: &[InputStage]) -> Vec<&'static str> {
        vec!["ort", QNN]
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let (graph, context) = (inputs.one("graph")?, inputs.one("context")?);
        let tokens = inputs.one("reference")?.part("window-000/tokens.json")?;
        let mut order = Candidate::of_graph(inputs)?
            .order("", params)
            .tools(libraries(inputs, &SIMULATOR)?)
            .input("tokens", tokens);
        let shards = compiled_shards(context, graph)?;
        let simulator = simulator_demand(shards.iter().map(|(_, binary)| *binary));
        order.demand.memory_bytes = order
            .demand
            .memory_bytes
            .saturating_add(simulator.memory_bytes);
        for (index, (file, binary)) in shards.iter().enumerate() {
            order = order
                .input(graph_input(index), graph.part(file)?)
                .input(binary_input(index), binary);
        }
        Ok(vec![order])
    }

    fn run(_: Params, job: &Job) -> Result<Outputs> {
        let tokens: Vec<u32> = serde_json::from_slice(&job.read("tokens")?)
            .context(Code::EvaluateLayersTokens, || {
                "read the tokens of a window".into()
            })?;
        let spec = model(job)?;
        let shard_graphs = ShardGraph::read_all(job)?;
        let mut recorder = Recorder::default();
        for graph in &shard_graphs {
            for name in graph.inputs.iter().chain(&graph.outputs) {
                recorder.names.insert(name_in_full_graph(name).into());
            }
        }
        observe(job, &spec, slice::from_ref(&tokens), &mut recorder)?;
        let values = recorder.values;

        let facts: GraphFacts = job.input(PREFILL)?.facts.read()?;
        let mut inputs = first_inputs(&spec, &facts, &tokens)?;
        for name in shard_graphs.iter().flat_map(|graph| &graph.inputs) {
            if let Some(elements) = values.get(name_in_full_graph(name)) {
                inputs.insert(name.clone(), Tensor::F32(vec![], elements.clone()));
            }
        }
        let mut shards = vec![];
        for (index, graph) in shard_graphs.iter().enumerate() {
            job.check_cancelled()?;
            job.progress(index as u64, shard_graphs.len() as u64, "shards");
            let mut simulator = Htp::of(job, &[&binary_input(index)])?;
            let found = simulator.run(Graph::Prefill, &inputs, &graph.outputs)?;
            let mut scores = BTreeMap::new();
            for name in &graph.outputs {
                scores.insert(name.clone(), score_value(name, &values, &found)?);
            }
            let (first, end) = match graph.shard {
                Some(shard) => (shard.first, shard.end),
                None => (0, spec.block_count()),
            };
            shards.push(ShardScore {
                first,
                end,
                values: scores,
            });
        }
        let text = CanonJson::of(&Computed { shards })?.to_string();
        let part = job.write(text.as_bytes(), CanonJson::default())?;
        Ok([(PartName::new(LAYERS)?, part)].into())
    }
}

/// Compares the output `name` that the simulator computed with that of the full graph.
fn score_value(
    name: &str,
    expected: &BTreeMap<String, Vec<f32>>,
    found: &BTreeMap<String, Vec<f32>>,
) -> Result<ValueScore> {
    match (expected.get(name), found.get(name)) {
        (Some(expected), Some(found)) if expected.len() == found.len() => {
            Ok(ValueScore::of(expected, found))
        }
        _ => Err(Problem::new(
            Code::EvaluateLayersValue,
            format!("`{name}` is missing in the graph or on the simulator, or differs in length"),
        )),
    }
}

/// The compiled prefill graphs in `context`, in the order of the layers: the name of each in
/// `graph`, and its binary.
fn compiled_shards<'a>(context: &'a Manifest, graph: &Manifest) -> Result<Vec<(String, &'a Part)>> {
    let mut found = BTreeMap::new();
    for (name, part) in &context.parts {
        if !is_binary(name.as_str()) {
            continue;
        }
        let mut facts: ContextFacts = part.facts.read()?;
        let Some(compiled) = facts.graphs.remove("prefill") else {
            return Err(Problem::new(
                Code::EvaluateLayersGraphs,
                "a context binary holds no prefill graph",
            )
            .help("leave `prefill` in the `graphs` of the `context-bin` stage"));
        };
        let (file, number) = match compiled.shard {
            Some(shard) => (format!("{}.onnx", shard.graph_stem("prefill")), shard.part),
            None => ("prefill.onnx".into(), 1),
        };
        if !contains_graph(graph, &file, &compiled)? {
            let message = format!(
                "the context binary holds `{}`, which is not of this `graph`",
                compiled.name
            );
            return Err(Problem::new(Code::EvaluateLayersOther, message)
                .help("give the `graph` stage that the `context-bin` stage was made from"));
        }
        found.insert(number, (file, part));
    }
    Ok(found.into_values().collect())
}

/// Whether `file` of `graph` has the facts `compiled`. Its weights may be stored in another way:
/// the effect of that is measured.
fn contains_graph(graph: &Manifest, file: &str, compiled: &GraphFacts) -> Result<bool> {
    let Some(part) = graph.get(file) else {
        return Ok(false);
    };
    let mut facts: GraphFacts = part.facts.read()?;
    facts.weights.clone_from(&compiled.weights);
    Ok(facts == *compiled)
}

fn graph_input(index: usize) -> String {
    format!("shards/{index}/prefill.onnx")
}

fn binary_input(index: usize) -> String {
    format!("shards/{index}/model.bin")
}

/// A shard's prefill graph.
struct ShardGraph {
    /// `None` if the model is not cut.
    shard: Option<Shard>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl ShardGraph {
    /// The graphs among the inputs of `job`, in the order of the layers.
    fn read_all(job: &Job) -> Result<Vec<Self>> {
        let mut graphs = vec![];
        loop {
            let name = graph_input(graphs.len());
            let Ok(input) = job.input(&name) else {
                return Ok(graphs);
            };
            let GraphFacts { shard, .. } = input.facts.read()?;
            let model = decode(&job.read(&name)?)?;
            let graph = Checked::new(&model)?.graph;
            graphs.push(ShardGraph {
                shard,
                inputs: graph.input.iter().map(|value| value.name.clone()).collect(),
                outputs: graph
                    .output
                    .iter()
                    .map(|value| value.name.clone())
                    .collect(),
            });
        }
    }
}

/// The name in the full graph of a value of a shard. Only the embedding rows have two names.
fn name_in_full_graph(name: &str) -> &str {
    if name == OuterModule::Embedding.value() {
        ROWS
    } else {
        name
    }
}

/// Records the values that shards read and compute.
#[derive(Default)]
struct Recorder {
    names: BTreeSet<String>,
    values: BTreeMap<String, Vec<f32>>,
}

impl Observer for Recorder {
    fn wants(&self, value: &str) -> bool {
        self.names.contains(value)
    }

    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        self.values.insert(value.into(), elements.to_vec());
        Ok(())
    }
}
