//! `estimate`: how fast the graphs are on a chip, by Qualcomm's compiler.
//!
//! The graphs are compiled once more, as `context-bin` does, for a chip whose speed the compiler
//! estimates, and the binary is not kept. One order, or one per shard: the readers add up the
//! shards. With `layers`, each linear layer of the decode graph is compiled alone, too: one graph
//! for all layers of the same shape and encoding.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Order, Outputs, ParamProblem, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::context::{DECODE, ROLES, both_roles};
use crate::artifact::estimate::{
    ESTIMATE, ESTIMATE_TEXT, Figures, GraphEstimate, LayerEstimate, ModelEstimate, NOTES,
    ShardEstimate,
};
use crate::artifact::tools::{QNN, libraries};
use crate::artifact::weight;
use crate::base::{CanonJson, Code, Problem, Result};
use crate::compile::{CompiledShards, Elements, compile_bytes, lower_graphs, lower_model};
use crate::model::facts::GraphFacts;
use crate::model::onnx::{LinearShape, decode, linear_layers};
use crate::model::weight::WeightFacts;
use crate::qnn::{Backend, Chip, Context, Estimate as QnnEstimate, HtpGraph};

/// The parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The chip to estimate for: one that resembles yours, since the compiler has no estimate for
    /// phones and laptops.
    #[serde(default = "default_soc")]
    #[schemars(extend("enum" = Chip::estimated_names()))]
    soc: String,
    /// The graphs to estimate.
    #[serde(default = "both_roles")]
    #[schemars(extend("items" = serde_json::json!({ "enum": ROLES }), "minItems" = 1, "uniqueItems" = true))]
    graphs: Vec<String>,
    /// Estimate only this many of the graph's shards: the first, the last and some between. By
    /// default all. Of a sample there are no sums.
    #[schemars(range(min = 1))]
    sample: Option<u32>,
    /// Whether `estimate.json` lists the names of the operations without a cost.
    #[serde(default)]
    details: bool,
    /// Whether each linear layer of the decode graph is estimated alone, too: one more graph for
    /// each distinct shape and encoding.
    #[serde(default)]
    layers: bool,
}

fn default_soc() -> String {
    "qcs9075".into()
}

/// What to estimate: the graphs of one shard.
#[derive(Clone, Serialize, Deserialize)]
pub struct Work {
    soc: String,
    graphs: Vec<String>,
    details: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    layers: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The stage.
pub struct Estimate;

impl TypedStage for Estimate {
    type Params = Params;
    type Order = Work;
    const SPEC: StageSpec = StageSpec {
        kind: "estimate",
        version: 2,
        summary: "time and memory traffic of the graphs, as Qualcomm's compiler estimates them",
        output: "estimate",
        inputs: &[InputSpec {
            name: "graph",
            meaning: "The graphs to estimate.",
            accepts: &["onnx"],
            required: true,
            many: false,
        }],
        params: &["soc", "graphs", "sample", "details", "layers"],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn check(params: &Params, _: &[InputStage]) -> Vec<ParamProblem> {
        if !params.layers || params.graphs.iter().any(|role| role == DECODE) {
            return vec![];
        }
        let message = "`layers` are those of the decode graph, which is not among `graphs`";
        vec![ParamProblem {
            path: "layers".into(),
            problem: Problem::new(Code::PlanParameter, message)
                .help("add `\"decode\"` to `graphs`, or leave out `layers`"),
        }]
    }

    fn tools(_: &Params, _: &[InputStage]) -> Vec<&'static str> {
        vec![QNN]
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Work>>> {
        let tools = libraries(inputs, &["libQnnHtp.so"])?;
        let Params {
            soc,
            graphs,
            sample,
            details,
            layers,
        } = params;
        let shards = CompiledShards::new(inputs.one("graph")?, "onnx", &graphs, sample)?;
        let work = Work {
            soc,
            graphs: graphs.clone(),
            details,
            layers,
        };
        let mut orders = shards.orders(&work, &tools)?;
        if layers {
            for order in &mut orders {
                let memory = order.demand.memory_bytes;
                order.demand.memory_bytes = memory.saturating_add(layer_bytes(order));
            }
        }
        Ok(orders)
    }

    fn run(work: Work, job: &Job) -> Result<Outputs> {
        let estimate = work.estimate(job)?;
        let json = CanonJson::of(&estimate)?;
        let facts = estimate.without_names();
        let model = ModelEstimate::of(vec![facts.clone()])?;
        let text = format!("{}\n\n{model}\n{NOTES}", model.heading());
        Ok(BTreeMap::from([
            (
                PartName::new(ESTIMATE)?,
                job.write(json.to_string().as_bytes(), CanonJson::of(&facts)?)?,
            ),
            (
                PartName::new(ESTIMATE_TEXT)?,
                job.write(text.as_bytes(), CanonJson::default())?,
            ),
        ]))
    }
}

impl Work {
    fn estimate(&self, job: &Job) -> Result<ShardEstimate> {
        let chip = Chip::estimated(&self.soc)?;
        let soc = chip.into();
        let context = Context::new(&Backend::htp(&job.tool_folder(QNN)?, soc)?, false)?;
        let count = self.graphs.len() as u64;
        let mut graphs = BTreeMap::new();
        for (role, graph) in self.graphs.iter().zip(lower_graphs(job, &self.graphs)?) {
            job.check_cancelled()?;
            job.progress(graphs.len() as u64, count, "graphs");
            let options = HtpGraph::default();
            let estimate = context.estimate(&graph, options, soc, self.details)?;
            let facts: GraphFacts = job.input(&format!("{role}.onnx"))?.facts.read()?;
            let mut names = estimate.names.clone();
            names.sort();
            let graph = GraphEstimate::new(&facts, figures(&estimate), names);
            graphs.insert(role.clone(), graph);
        }
        job.progress(count, count, "graphs");
        if self.layers
            && let Some(graph) = graphs.get_mut(DECODE)
        {
            graph.layers = self.layers(job, &context, &graph.figures)?;
        }
        Ok(ShardEstimate {
            soc: chip.name.into(),
            arch: chip.arch,
            graphs,
        })
    }

    /// The estimates of the linear layers of the decode graph, whose own figures are `whole`.
    fn layers(
        &self,
        job: &Job,
        context: &Context,
        whole: &Figures,
    ) -> Result<BTreeMap<String, LayerEstimate>> {
        let soc = Chip::estimated(&self.soc)?.into();
        let found = linear_layers(&decode(&job.read(&format!("{DECODE}.onnx"))?)?)?;
        let shapes: BTreeSet<LinearShape> = found.iter().map(|layer| layer.shape).collect();
        let (mut times, mut layers) = (BTreeMap::new(), BTreeMap::new());
        for layer in found {
            let time_us = match times.get(&layer.shape) {
                Some(&time_us) => time_us,
                None => {
                    job.check_cancelled()?;
                    job.progress(times.len() as u64, shapes.len() as u64, "layers");
                    let graph = lower_model(job, &layer.model)?;
                    let estimate = context.estimate(&graph, HtpGraph::default(), soc, false)?;
                    let time_us = microseconds(estimate.cycles.value, whole);
                    times.insert(layer.shape, time_us);
                    time_us
                }
            };
            let facts = weight::facts(job, &format!("weights/{}", layer.tensor))?;
            layers.insert(
                layer.tensor,
                LayerEstimate {
                    scheme: facts.error.map(|error| error.scheme),
                    shape: layer.shape,
                    time_us,
                },
            );
        }
        Ok(layers)
    }
}

/// `cycles` in microseconds, at the clock of the graph with the figures `whole`: its cycles by its
/// time, whose rounding to whole microseconds matters little there. Of a layer it would.
fn microseconds(cycles: u64, whole: &Figures) -> f64 {
    let us = cycles as f64 * whole.time_us as f64 / whole.cycles.max(1) as f64;
    (us * 100.0).round() / 100.0
}

/// Peak memory that the graphs of the linear layers add to an order: one for each distinct shape
/// and encoding of its weights.
fn layer_bytes(order: &Order<Work>) -> u64 {
    let (mut known, mut parts) = (BTreeSet::new(), vec![]);
    for (name, part) in &order.inputs {
        if let Ok(facts) = part.facts.read::<WeightFacts>()
            && facts.is_main()
            && facts.shape.len() == 2
            && known.insert((facts.shape, facts.encoding))
        {
            parts.push((name.as_str(), part));
        }
    }
    compile_bytes(Elements::of_weights(parts.into_iter()), 1)
}

fn figures(estimate: &QnnEstimate) -> Figures {
    Figures {
        time_us: estimate.time_us.value,
        time_lower_us: estimate.time_us.lower,
        time_upper_us: estimate.time_us.upper,
        cycles: estimate.cycles.value,
        read_bytes: estimate.read_bytes,
        fill_bytes: estimate.fill_bytes,
        spill_bytes: estimate.spill_bytes,
        write_bytes: estimate.write_bytes,
        ops_without_cost: estimate.ops_without_cost,
    }
}
