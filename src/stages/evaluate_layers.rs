//! `evaluate-layers`: what some layers compute on the HTP simulator, each by itself, from the
//! values that ONNX Runtime computes in the middle of a model: for models that would take hours on
//! the simulator.
//!
//! The inputs of a shard and the expected outputs are the graph's own values in f32; what the
//! simulator computes from the inputs is compared with the expected outputs.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Given, InputSpec, Inputs, Job, Manifest, Order, Outputs, Part, PartName, StageSpec, TypedStage,
};
use crate::artifact::context::is_binary;
use crate::artifact::layer_evaluation::{Computed, LAYERS, ShardScore, ValueScore};
use crate::artifact::tools::{QNN, libraries};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::facts::{ContextFacts, GraphFacts};
use crate::model::onnx::{Checked, decode};
use crate::model::shards::{End, ROWS, Shard};
use crate::run::decoder::{Engine, Graph, Tensor, opening};
use crate::run::{Candidate, Htp, Observer, PREFILL, SIMULATOR, model, observe, of_simulator};

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

    fn tools(_: &Params, _: &[Given]) -> Vec<&'static str> {
        vec!["ort", QNN]
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let (graph, context) = (inputs.one("graph")?, inputs.one("context")?);
        let mut order = Candidate::of_graph(inputs)?
            .order("", params)
            .tools(libraries(inputs, &SIMULATOR)?);
        order = order.input(
            "tokens",
            inputs.one("reference")?.part("window-000/tokens.json")?,
        );
        let shards = compiled(context, graph)?;
        let simulator = of_simulator(shards.iter().map(|(_, binary)| *binary));
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
        let model = model(job)?;
        let pieces = (0..)
            .map_while(|index| Piece::read(job, index))
            .collect::<Result<Vec<_>>>()?;
        let mut seen = Seen {
            wanted: pieces.iter().flat_map(Piece::ends).collect(),
            values: BTreeMap::new(),
        };
        observe(job, &model, std::slice::from_ref(&tokens), &mut seen)?;
        let facts: GraphFacts = job.input(PREFILL)?.facts.read()?;
        let mut given = opening(&model, &facts, &tokens)?;
        let reads: BTreeSet<&String> = pieces.iter().flat_map(|piece| &piece.reads).collect();
        let read = seen.values.iter().filter(|(name, _)| reads.contains(name));
        given
            .extend(read.map(|(name, values)| (name.clone(), Tensor::F32(vec![], values.clone()))));
        // The shard takes them under another name than they have in the whole graph.
        let rows = seen
            .values
            .get(ROWS)
            .map(|rows| Tensor::F32(vec![], rows.clone()));
        given.extend(rows.map(|rows| (End::Embedding.value().to_string(), rows)));
        let mut shards = vec![];
        for (index, piece) in pieces.iter().enumerate() {
            job.check_cancelled()?;
            job.progress(index as u64, pieces.len() as u64, "shards");
            let mut chip = Htp::of(job, &[&binary_input(index)])?;
            let mut found = chip.run(Graph::Prefill, &given, &piece.output)?;
            let value = |name: &String| {
                let missing =
                    || Problem::new(Code::EvaluateLayersValue, format!("nobody gives `{name}`"));
                let expected = seen.values.get(name).ok_or_else(missing)?;
                let found = found
                    .remove(name)
                    .filter(|found| found.len() == expected.len())
                    .ok_or_else(missing)?;
                Ok((name.clone(), ValueScore::of(expected, &found)))
            };
            let values = piece.output.iter().map(value).collect::<Result<_>>()?;
            let (first, end) = piece
                .shard
                .map_or((0, model.block_count()), |shard| (shard.first, shard.end));
            shards.push(ShardScore { first, end, values });
        }
        let text = CanonJson::of(&Computed { shards })?.to_string();
        Ok([(
            PartName::new(LAYERS)?,
            job.write(text.as_bytes(), CanonJson::default())?,
        )]
        .into())
    }
}

/// The prefill graphs that `context` holds compiled, by their names in `graph`, in the order of the
/// layers.
fn compiled<'a>(context: &'a Manifest, graph: &Manifest) -> Result<Vec<(String, &'a Part)>> {
    let mut found = BTreeMap::new();
    for (_, part) in context
        .parts
        .iter()
        .filter(|(name, _)| is_binary(name.as_str()))
    {
        let mut facts: ContextFacts = part.facts.read()?;
        let of = facts.graphs.remove("prefill").ok_or_else(|| {
            Problem::new(
                Code::EvaluateLayersGraphs,
                "a context binary holds no prefill graph",
            )
            .help("leave `prefill` in the `graphs` of the `context-bin` stage")
        })?;
        let file = format!(
            "{}.onnx",
            of.shard
                .map_or("prefill".into(), |shard| shard.graph_stem("prefill"))
        );
        // Its weights may be stored otherwise: what that costs is measured.
        let same = |facts: GraphFacts| {
            facts
                == GraphFacts {
                    weights: facts.weights.clone(),
                    ..of.clone()
                }
        };
        let compiled = graph.get(&file).map(|part| part.facts.read());
        if !compiled.transpose()?.is_some_and(same) {
            let what = format!(
                "the context binary holds `{}`, which is not of this `graph`",
                of.name
            );
            return Err(Problem::new(Code::EvaluateLayersOther, what)
                .help("give the `graph` stage that the `context-bin` stage was made from"));
        }
        found.insert(of.shard.map_or(1, |shard| shard.part), (file, part));
    }
    Ok(found.into_values().collect())
}

fn graph_input(index: usize) -> String {
    format!("shards/{index}/prefill.onnx")
}

fn binary_input(index: usize) -> String {
    format!("shards/{index}/model.bin")
}

/// A shard's prefill graph.
struct Piece {
    shard: Option<Shard>,
    reads: Vec<String>,
    output: Vec<String>,
}

impl Piece {
    /// That of input `index`, if there is one.
    fn read(job: &Job, index: usize) -> Option<Result<Self>> {
        let name = graph_input(index);
        let input = job.input(&name).ok()?;
        let piece = || {
            let GraphFacts { shard, .. } = input.facts.read()?;
            let model = decode(&job.read(&name)?)?;
            let graph = Checked::new(&model)?.graph;
            let reads = graph.input.iter().map(|value| value.name.clone()).collect();
            Ok(Piece {
                shard,
                reads,
                output: graph
                    .output
                    .iter()
                    .map(|value| value.name.clone())
                    .collect(),
            })
        };
        Some(piece())
    }

    /// What it takes and gives, by the names in the whole graph.
    fn ends(&self) -> impl Iterator<Item = String> {
        let of_whole = |name: &String| {
            if name == End::Embedding.value() {
                ROWS.into()
            } else {
                name.clone()
            }
        };
        self.reads.iter().chain(&self.output).map(of_whole)
    }
}

/// The values at the ends of shards.
struct Seen {
    wanted: BTreeSet<String>,
    values: BTreeMap<String, Vec<f32>>,
}

impl Observer for Seen {
    fn wants(&self, value: &str) -> bool {
        self.wanted.contains(value)
    }

    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        self.values.insert(value.into(), elements.to_vec());
        Ok(())
    }
}
