//! `calibrate`: measures statistics of every value of a float graph over a text, for the stages
//! that choose scales and round weights.
//!
//! There is one order: it runs the graph once, layer by layer over all windows.

mod keys;
mod moments;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Demand, InputSpec, InputStage, Inputs, Job, Manifest, Order, Outputs, ParamProblem, Part,
    PartName, StageSpec, TypedStage,
};
use crate::artifact::model::{TOKENIZER, check_tokenizer};
use crate::artifact::{tensors, weight};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::calibration::{Activations, KEY_MEANS, MomentFacts, is_sums, sums_name, wide_of};
use crate::model::decoder::DecoderSpec;
use crate::model::facts::{GraphFacts, of_all_heads};
use crate::model::onnx::proto::GraphProto;
use crate::model::onnx::{self, Function};
use crate::model::tokenizer::Tokenizer;
use crate::model::weight::{SumColumns, WeightFacts, blob_owner};
use crate::run::{Candidate, MAX_WINDOWS, Observer, PREFILL, observe, of_layers, windows};

use keys::KeySums;
use moments::{Diagonal, Moments, moment_bytes};
use tally::Tally;

/// Inputs of a linear layer that are summed.
const SUMMED: usize = SumColumns::BLOCK as usize;

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

/// The parameters of the order.
#[derive(Serialize, Deserialize)]
pub struct Calibration {
    windows: u32,
    /// Names of the weights whose inputs get all second moments.
    moments: BTreeSet<String>,
}

/// The stage.
pub struct Calibrate;

impl TypedStage for Calibrate {
    type Params = Params;
    type Order = Calibration;
    const SPEC: StageSpec = StageSpec {
        kind: "calibrate",
        version: 4,
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

    fn check(params: &Params, _: &[InputStage]) -> Vec<ParamProblem> {
        let patterns = params.moments.iter().enumerate();
        patterns
            .filter_map(|(i, text)| tensors::check_pattern(text, format!("moments/{i}")))
            .collect()
    }

    fn tools(_: &Params, _: &[InputStage]) -> Vec<&'static str> {
        vec!["ort"]
    }

    fn foresee(_: &Params, inputs: &Inputs) -> Result<()> {
        check_tokenizer(inputs)
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Calibration>>> {
        let model = inputs.one("model")?;
        let all = tensors::all(model)?;
        let mut chosen = BTreeSet::new();
        for pattern in &params.moments {
            let matcher = tensors::pattern(pattern)?;
            let before = chosen.len();
            for tensor in &all {
                if tensor.is_matrix() && matcher.is_match(tensor.name) {
                    chosen.insert(tensor.name.to_string());
                }
            }
            if chosen.len() == before {
                return Err(tensors::unmatched(pattern, "further matrix", &all));
            }
        }
        let (_, text) = inputs.one("text")?.only()?;
        let memory_and_threads = demand(inputs.one("graph")?, &chosen)?;
        let calibration = Calibration {
            windows: params.windows,
            moments: chosen,
        };
        let order = Candidate::of_graph(inputs)?
            .order("", calibration)
            .demand(memory_and_threads)
            .input("text", text)
            .input(TOKENIZER, model.part(TOKENIZER)?);
        Ok(vec![order])
    }

    fn run(order: Calibration, job: &Job) -> Result<Outputs> {
        let tokenizer = Tokenizer::from_metadata(&job.read(TOKENIZER)?)?;
        let model: DecoderSpec = job.input("candidate/model.json")?.facts.read()?;
        let graph: GraphFacts = job.input(PREFILL)?.facts.read()?;
        let text = job.read("text")?;
        let token_windows = windows(&text, &tokenizer, order.windows, graph.tokens)?;
        let prefill = onnx::decode(&job.read(PREFILL)?)?;
        let prefill = prefill.graph.unwrap_or_default();
        let mut observer = MomentObserver {
            job,
            keys: KeySums::new(&prefill, model.head_dim as usize, graph.tokens as usize),
            weights: weights_by_input(&prefill),
            sums_in_graph: sums_in(&prefill),
            with_moments: order.moments,
            tallies: BTreeMap::new(),
            inputs: BTreeMap::new(),
            activations: Activations::new(),
            outputs: Outputs::new(),
        };
        observe(job, &model, &token_windows, &mut observer)?;
        let activations = CanonJson::of(&observer.activations)?.to_string();
        let key_means = CanonJson::of(&observer.keys.means(token_windows.len()))?.to_string();
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

/// The names of the weights of the linear layers, by the name of their input. Constants of the
/// graph are not weights.
fn weights_by_input(graph: &GraphProto) -> BTreeMap<String, BTreeSet<String>> {
    let mut weights: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in &graph.node {
        if !matches!(Function::of(node), Some(Function::Linear { .. })) {
            continue;
        }
        let [input, weight, ..] = node.input.as_slice() else {
            continue;
        };
        let input = wide_of(input).unwrap_or(input);
        let owner = blob_owner(weight);
        if owner != weight {
            weights
                .entry(input.to_string())
                .or_default()
                .insert(owner.to_string());
        }
    }
    weights
}

/// The sums of blocks that `graph` computes.
fn sums_in(graph: &GraphProto) -> BTreeSet<String> {
    let outputs = graph.node.iter().flat_map(|node| &node.output);
    outputs.filter(|name| is_sums(name)).cloned().collect()
}

/// The sums of the blocks of `elements`, whose number is a multiple of [`SUMMED`].
fn block_sums(elements: &[f32]) -> Vec<f32> {
    let mut sums = Vec::with_capacity(elements.len() / SUMMED);
    for block in elements.chunks(SUMMED) {
        let sum: f32 = block.iter().sum();
        sums.push(sum / SumColumns::DIVISOR as f32);
    }
    sums
}

/// Collects the statistics of the values of a layer, until the layer has run over all windows.
struct MomentObserver<'a, 'j> {
    job: &'a Job<'j>,
    keys: KeySums,
    /// The names of the weights of the linear layers, by the name of their input.
    weights: BTreeMap<String, BTreeSet<String>>,
    /// The sums of blocks that are values of the graph.
    sums_in_graph: BTreeSet<String>,
    /// The weights whose inputs get all second moments.
    with_moments: BTreeSet<String>,
    /// The statistics of each value of the current layer.
    tallies: BTreeMap<String, Tally>,
    /// Of each input of a linear layer of the current layer.
    inputs: BTreeMap<String, LayerInput>,
    activations: Activations,
    outputs: Outputs,
}

/// What is collected of an input of a linear layer.
struct LayerInput {
    diagonal: Diagonal,
    moments: Option<Moments>,
    /// The sums of its blocks, unless the graph computes them or it has no whole blocks.
    sums: Option<Tally>,
}

impl Observer for MomentObserver<'_, '_> {
    fn wants(&self, _: &str) -> bool {
        true
    }

    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        let tally = self.tallies.entry(of_all_heads(value).into());
        tally.or_default().add(elements);
        self.keys.add(value, elements)?;
        if let Some(weights) = self.weights.get(value)
            && !self.inputs.contains_key(value)
        {
            let columns = self.columns(weights)?;
            let moments = if self.with_moments.is_disjoint(weights) {
                None
            } else {
                Some(Moments::new(columns))
            };
            let is_summed =
                columns.is_multiple_of(SUMMED) && !self.sums_in_graph.contains(&sums_name(value));
            let input = LayerInput {
                diagonal: Diagonal::new(columns),
                moments,
                sums: is_summed.then(Tally::default),
            };
            self.inputs.insert(value.into(), input);
        }
        if let Some(input) = self.inputs.get_mut(value) {
            input.diagonal.add(elements);
            if let Some(moments) = &mut input.moments {
                moments.add(elements);
            }
            if let Some(sums) = &mut input.sums {
                sums.add(&block_sums(elements));
            }
        }
        Ok(())
    }

    fn pass(&mut self) -> Result<()> {
        for (value, tally) in std::mem::take(&mut self.tallies) {
            if tally.non_finite() > 0 {
                let message = format!(
                    "`{value}` has {} elements that are infinite or NaN",
                    tally.non_finite()
                );
                return Err(Problem::new(Code::CalibrateNonFinite, message).help(
                    "a model that overflows in f32 cannot be calibrated; is the file damaged?",
                ));
            }
            if let Some(activation) = tally.activation() {
                self.activations.insert(value, activation);
            }
        }
        for (value, input) in std::mem::take(&mut self.inputs) {
            let LayerInput {
                diagonal,
                moments,
                sums,
            } = input;
            if let Some(sums) = sums.and_then(|sums| sums.activation()) {
                self.activations.insert(sums_name(&value), sums);
            }
            let means = diagonal.means();
            let facts = MomentFacts {
                columns: means.len() as u64,
                tokens: diagonal.tokens(),
            };
            let diagonal_part = write_rows(self.job, &facts, [means])?;
            let moments_part = match &moments {
                Some(moments) => Some(write_rows(self.job, &facts, moments.rows())?),
                None => None,
            };
            for weight in self.weights.get(&value).into_iter().flatten() {
                let name = PartName::new(format!("diagonal/{weight}"))?;
                self.outputs.insert(name, diagonal_part.clone());
                if let Some(part) = &moments_part
                    && self.with_moments.contains(weight)
                {
                    let name = PartName::new(format!("moments/{weight}"))?;
                    self.outputs.insert(name, part.clone());
                }
            }
        }
        Ok(())
    }
}

impl MomentObserver<'_, '_> {
    /// The width of the common input of `weights`: the number of their columns.
    fn columns(&self, weights: &BTreeSet<String>) -> Result<usize> {
        let name = weights.first().map_or("", String::as_str);
        let facts = weight::facts(self.job, &format!("candidate/weights/{name}"))?;
        let columns = facts.shape.last().copied().unwrap_or(0);
        match usize::try_from(columns) {
            Ok(columns @ 1..) => Ok(columns),
            _ => Err(Problem::new(
                Code::CalibrateWeight,
                format!("`{name}` is no matrix of the graph"),
            )),
        }
    }
}

/// Writes `rows` as f32.
fn write_rows(
    job: &Job,
    facts: &MomentFacts,
    rows: impl IntoIterator<Item = Vec<f32>>,
) -> Result<Part> {
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

/// The demand of the graph in ONNX Runtime, and of the sums of moments. Weights with a common input
/// are counted once each.
fn demand(graph: &Manifest, with_moments: &BTreeSet<String>) -> Result<Demand> {
    let moments = |tensor: &str, facts: &WeightFacts| match facts.shape.last() {
        Some(columns) if with_moments.contains(tensor) => moment_bytes(*columns),
        _ => 0,
    };
    let demand = of_layers(graph, u64::MAX, moments)?;
    let threads = match std::thread::available_parallelism() {
        Ok(threads) if !with_moments.is_empty() => threads.get() as u32,
        _ => 1,
    };
    Ok(Demand { threads, ..demand })
}
