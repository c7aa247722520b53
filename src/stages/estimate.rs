//! `estimate`: how fast the graphs are on a chip, by Qualcomm's compiler.
//!
//! The graphs are compiled once more, as `context-bin` does, for a chip whose speed the compiler
//! estimates, and the binary is not kept. One order, or one per shard: the readers add up the
//! shards.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Order, Outputs, PartName, StageSpec, TypedStage,
};
use crate::artifact::context::{ROLES, both_roles};
use crate::artifact::estimate::{
    ESTIMATE, ESTIMATE_TEXT, Figures, GraphEstimate, ModelEstimate, NOTES, ShardEstimate,
};
use crate::artifact::tools::{QNN, libraries};
use crate::base::{CanonJson, Result};
use crate::compile::{CompiledShards, lower_graphs};
use crate::model::facts::GraphFacts;
use crate::qnn::{Backend, Context, Estimate as QnnEstimate, HtpGraph, Soc};

/// The parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The chip to estimate for: one that resembles yours, since the compiler has no estimate for
    /// phones and laptops.
    #[serde(default = "default_soc")]
    #[schemars(extend("enum" = Soc::estimated_names()))]
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
}

/// The stage.
pub struct Estimate;

impl TypedStage for Estimate {
    type Params = Params;
    type Order = Work;
    const SPEC: StageSpec = StageSpec {
        kind: "estimate",
        version: 1,
        summary: "time and memory traffic of the graphs, as Qualcomm's compiler estimates them",
        output: "estimate",
        inputs: &[InputSpec {
            name: "graph",
            meaning: "The graphs to estimate.",
            accepts: &["onnx"],
            required: true,
            many: false,
        }],
        params: &["soc", "graphs", "sample", "details"],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

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
        } = params;
        let shards = CompiledShards::new(inputs.one("graph")?, "onnx", &graphs, sample)?;
        let work = Work {
            soc,
            graphs: graphs.clone(),
            details,
        };
        shards.orders(&work, &tools)
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
        let soc = Soc::estimated(&self.soc)?;
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
        Ok(ShardEstimate {
            soc: soc.name.into(),
            arch: soc.arch,
            graphs,
        })
    }
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
