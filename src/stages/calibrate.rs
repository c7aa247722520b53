//! `calibrate`: statistics of every value of a float graph over a text, for the stages that choose
//! scales and round weights.
//!
//! One order: the graph is run once, layer by layer over all windows.

mod keys;
mod moments;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Demand, Given, InputSpec, Inputs, Job, Manifest, Order, Outputs, ParamProblem, Part, PartName,
    StageSpec, TypedStage,
};
use crate::artifact::{tensors, weight};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::calibration::{Activations, KEY_MEANS, MomentFacts};
use crate::model::decoder::DecoderSpec;
use crate::model::facts::GraphFacts;
use crate::model::onnx::proto::{GraphProto, NodeProto};
use crate::model::onnx::{self, Function};
use crate::model::tokenizer::Tokenizer;
use crate::model::weight::{WeightFacts, blob_owner};
use crate::run::{Candidate, MAX_WINDOWS, Observer, PREFILL, observe, of_layers, windows};

use keys::Keys;
use moments::{Diagonal, Moments, moment_bytes};
use tally::Tally;

/// The parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Number of windows of the text that are run, each as long as a prefill.
    #[serde(default = "default_windows")]
    #[schemars(range(min = 1, max = MAX_WINDOWS))]
    windows: u32,
    /// Glob patterns of matrix names, for example `blk.*`: for their inputs all second moments are
    /// kept, for those of other matrices the diagonal only.
    #[serde(default)]
    moments: Vec<String>,
}

fn default_windows() -> u32 {
    32
}

/// What is run.
#[derive(Serialize, Deserialize)]
pub struct Calibration {
    windows: u32,
    /// Names of weights.
    moments: BTreeSet<String>,
}

/// The stage.
pub struct Calibrate;

impl TypedStage for Calibrate {
    type Params = Params;
    type Order = Calibration;
    const SPEC: StageSpec = StageSpec {
        kind: "calibrate",
        version: 3,
        summary: "range, percentiles and second moments of every activation over a text",
        output: "calibration",
        inputs: &[
            InputSpec {
                name: "graph",
                meaning: "The float graph: weights `native` or `f16`, no activations in codes.",
                accepts: &["onnx"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "model",
                meaning: "The model, for its tokenizer.",
                accepts: &["model"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "text",
                meaning: "A UTF-8 text; not the one that the result is evaluated on.",
                accepts: &["file"],
                required: true,
                many: false,
            },
        ],
        params: &["windows", "moments"],
        keyed: &[],
        reaches_outside: false,
        measures: true,
    };

    fn check(params: &Params, _: &[Given]) -> Vec<ParamProblem> {
        let patterns = params.moments.iter().enumerate();
        patterns
            .filter_map(|(i, text)| tensors::check_pattern(text, format!("moments/{i}")))
            .collect()
    }

    fn tools(_: &Params, _: &[Given]) -> Vec<&'static str> {
        vec!["ort"]
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Calibration>>> {
        let model = inputs.one("model")?;
        let all = tensors::all(model)?;
        let mut chosen = BTreeSet::new();
        for pattern in &params.moments {
            let matcher = tensors::pattern(pattern)?;
            let before = chosen.len();
            let matches = all
                .iter()
                .filter(|tensor| tensor.is_matrix() && matcher.is_match(tensor.name));
            chosen.extend(matches.map(|tensor| tensor.name.to_string()));
            if chosen.len() == before {
                return Err(tensors::unmatched(pattern, "further matrix", &all));
            }
        }
        let demand = demand(inputs.one("graph")?, &chosen)?;
        let (_, text) = inputs.one("text")?.only()?;
        let order = Calibration {
            windows: params.windows,
            moments: chosen,
        };
        let order = Candidate::of_graph(inputs)?.order("", order).demand(demand);
        Ok(vec![
            order
                .input("text", text)
                .input("tokenizer.json", model.part("tokenizer.json")?),
        ])
    }

    fn run(order: Calibration, job: &Job) -> Result<Outputs> {
        let tokenizer = Tokenizer::from_metadata(&job.read("tokenizer.json")?)?;
        let model: DecoderSpec = job.input("candidate/model.json")?.facts.read()?;
        let graph: GraphFacts = job.input(PREFILL)?.facts.read()?;
        let windows = windows(&job.read("text")?, &tokenizer, order.windows, graph.tokens)?;
        let whole = onnx::decode(&job.read(PREFILL)?)?;
        let whole = whole.graph.unwrap_or_default();
        let mut observer = MomentObserver {
            job,
            keys: Keys::new(&whole, model.head_dim as usize, graph.tokens as usize),
            linears: linears(&whole),
            moments: order.moments,
            tallies: BTreeMap::new(),
            inputs: BTreeMap::new(),
            activations: Activations::new(),
            outputs: Outputs::new(),
        };
        observe(job, &model, &windows, &mut observer)?;
        let activations = CanonJson::of(&observer.activations)?.to_string();
        let key_means = CanonJson::of(&observer.keys.means(windows.len()))?.to_string();
        let mut outputs = observer.outputs;
        outputs.insert(
            PartName::new(KEY_MEANS)?,
            job.write(key_means.as_bytes(), CanonJson::default())?,
        );
        outputs.insert(
            PartName::new("activations.json")?,
            job.write(activations.as_bytes(), CanonJson::default())?,
        );
        Ok(outputs)
    }
}

/// The weights of the model's linear layers by the value that they multiply; constants of the graph
/// are no weights.
fn linears(graph: &GraphProto) -> BTreeMap<String, BTreeSet<String>> {
    let is_linear = |node: &&NodeProto| matches!(Function::of(node), Some(Function::Linear { .. }));
    let mut linears: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in graph.node.iter().filter(is_linear) {
        let [input, weight, ..] = node.input.as_slice() else {
            continue;
        };
        if blob_owner(weight) != weight {
            linears
                .entry(input.clone())
                .or_default()
                .insert(blob_owner(weight).to_string());
        }
    }
    linears
}

/// What is kept of the values of a layer, until the layer has run over all windows.
struct MomentObserver<'a, 'j> {
    job: &'a Job<'j>,
    keys: Keys,
    linears: BTreeMap<String, BTreeSet<String>>,
    /// Weights for which all moments are wanted.
    moments: BTreeSet<String>,
    tallies: BTreeMap<String, Tally>,
    inputs: BTreeMap<String, (Diagonal, Option<Moments>)>,
    activations: Activations,
    outputs: Outputs,
}

impl Observer for MomentObserver<'_, '_> {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        if !self.tallies.contains_key(value) {
            self.tallies.insert(value.into(), Tally::default());
        }
        if let Some(tally) = self.tallies.get_mut(value) {
            tally.add(elements);
        }
        self.keys.add(value, elements)?;
        if let (Some(weights), false) = (self.linears.get(value), self.inputs.contains_key(value)) {
            let columns = self.columns(value)?;
            let full = weights.iter().any(|weight| self.moments.contains(weight));
            self.inputs.insert(
                value.into(),
                (Diagonal::new(columns), full.then(|| Moments::new(columns))),
            );
        }
        if let Some((diagonal, moments)) = self.inputs.get_mut(value) {
            diagonal.add(elements);
            if let Some(moments) = moments {
                moments.add(elements);
            }
        }
        Ok(())
    }

    fn pass(&mut self) -> Result<()> {
        for (value, tally) in std::mem::take(&mut self.tallies) {
            if tally.non_finite() > 0 {
                let message = format!(
                    "`{value}` has {} elements that are infinite or no number",
                    tally.non_finite()
                );
                return Err(Problem::new(Code::CalibrateNonFinite, message).help(
                    "nothing can be learned from a model that overflows in f32; is the file whole?",
                ));
            }
            self.activations
                .extend(tally.activation().map(|activation| (value, activation)));
        }
        for (value, (diagonal, moments)) in std::mem::take(&mut self.inputs) {
            let means: Vec<f32> = diagonal.means().collect();
            let facts = MomentFacts {
                columns: means.len() as u64,
                tokens: diagonal.tokens(),
            };
            let of_diagonal = write(self.job, &facts, [means].into_iter())?;
            let of_moments = match &moments {
                Some(moments) => Some(write(
                    self.job,
                    &facts,
                    (0..facts.columns as usize).map(|i| moments.row(i)),
                )?),
                None => None,
            };
            for weight in self.linears.get(&value).into_iter().flatten() {
                self.outputs.insert(
                    PartName::new(format!("diagonal/{weight}"))?,
                    of_diagonal.clone(),
                );
                if let Some(part) = of_moments
                    .as_ref()
                    .filter(|_| self.moments.contains(weight))
                {
                    self.outputs
                        .insert(PartName::new(format!("moments/{weight}"))?, part.clone());
                }
            }
        }
        Ok(())
    }
}

impl MomentObserver<'_, '_> {
    /// The width of the linear layers' input `value`: the columns of their weights.
    fn columns(&self, value: &str) -> Result<usize> {
        let name = self
            .linears
            .get(value)
            .and_then(BTreeSet::first)
            .map_or("", String::as_str);
        let facts = weight::facts(self.job, &format!("candidate/weights/{name}"))?;
        let columns = facts.shape.last();
        let columns = columns
            .and_then(|columns| usize::try_from(*columns).ok())
            .filter(|columns| *columns > 0);
        columns.ok_or_else(|| {
            Problem::new(
                Code::CalibrateWeight,
                format!("`{name}` is no matrix of the graph"),
            )
        })
    }
}

/// Rows of f32.
fn write(job: &Job, facts: &MomentFacts, rows: impl Iterator<Item = Vec<f32>>) -> Result<Part> {
    let mut sink = job.create()?;
    for row in rows {
        let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        sink.write_all(&bytes)
            .context(Code::Io, || "write moments".into())?;
    }
    Ok(Part {
        content: sink.finish()?,
        facts: CanonJson::of(facts)?,
    })
}

/// What the graph takes in ONNX Runtime, and the sums of moments, as if no two weights read the
/// same value.
fn demand(graph: &Manifest, moments: &BTreeSet<String>) -> Result<Demand> {
    let sums = |facts: &WeightFacts| {
        facts
            .shape
            .last()
            .map_or(0, |columns| moment_bytes(*columns))
    };
    let demand = of_layers(graph, u64::MAX, |tensor, facts| {
        if moments.contains(tensor) {
            sums(facts)
        } else {
            0
        }
    })?;
    let threads = if moments.is_empty() {
        1
    } else {
        std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
    };
    Ok(Demand { threads, ..demand })
}
