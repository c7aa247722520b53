//! `graph`: the decoder as two ONNX files, prefill and decode, over one set of weights. Topology
//! only: the files point at the blobs of the weights, which are passed on untouched.

mod activations;
mod centre;
mod centring;
mod classes;
mod decoder;
mod weights;

use std::collections::BTreeMap;

use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, Inputs, Job, Manifest, Order, Outputs, ParamProblem, PartName, StageSpec, TypedStage,
};
use crate::artifact::context::ROLES;
use crate::base::{CanonJson, Context, Digest, Problem, Result, bytes, parse_bytes};
use crate::compile::Compilations;
use crate::model::calibration::{self, KEY_MEANS};
use crate::model::facts::{GraphFacts, ModelFacts};
use crate::model::ledger::Ledger;
use crate::model::onnx::{Grid, lint};
use crate::model::shards::{Place, Shard};
use activations::{Choice, Wish, choose};
use centre::KeyCentres;
use centring::KeyCentring;
use decoder::{Piece, Profile, decoder};
use weights::Weights;

/// Longest context of a graph, in tokens: what Genie's own exports go up to, and far above what a
/// phone's memory holds.
const MAX_CONTEXT: u32 = 1 << 16;
/// Largest k and j: 2^-12 leaves a half of 1 with its full precision, and nothing seen needs more
/// than 2^-4.
const MAX_EXPONENT: u32 = 12;
/// Several times the deepest decoder there is (126 layers).
const MAX_LAYERS: u32 = 1024;

/// Of a calibration, what grids are chosen by.
const CALIBRATION: &str = "activations.json";

/// The stage `graph`.
pub struct Graph;

/// What a plan may say.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Tokens of one prefill call.
    #[schemars(range(min = 1))]
    pub prefill: u32,
    /// Tokens that attention sees, past and new, in both graphs.
    #[schemars(range(max = MAX_CONTEXT))]
    pub context: u32,
    /// The residual stream is held times `2^-residual_exponent`, for models that would overflow a
    /// half.
    #[schemars(range(max = MAX_EXPONENT))]
    pub residual_exponent: u32,
    /// gate*up is held times `2^-ffn_exponent`, likewise.
    #[schemars(range(max = MAX_EXPONENT))]
    pub ffn_exponent: u32,
    /// How activations are held; `u16` wants a `calibration`.
    #[serde(skip_serializing_if = "is_default")]
    pub activations: Activations,
    /// How keys and values are handed out and in; all but `f16` want a `calibration`.
    #[serde(skip_serializing_if = "is_default")]
    pub kv: Cache,
    /// What is subtracted from every rotated key, which changes no attention and keeps keys and
    /// scores small; by default the mean of the rotated key bias, where the model has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_centre: Option<KeyCentring>,
    /// What computes embedding and head: the chip, or the CPU, for which they are graphs of their
    /// own.
    #[serde(skip_serializing_if = "is_default")]
    pub place: Place,
    /// Into how many graphs the layers are cut, each pair of them compiled by itself; `auto`: as
    /// few as let each be compiled in `shard_memory`; `layers`: one for each.
    #[serde(skip_serializing_if = "is_default")]
    pub shards: Shards,
    /// What compiling one shard may take, for `shards = "auto"`: `"3GB"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard_memory: Option<String>,
    /// An activation is held in 16 bits if its signal stands so far above the rounding noise,
    /// outliers apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 120.0))]
    pub sqnr_db: Option<f64>,
    /// How much wider a grid is than what the calibration saw, on both sides, as a share of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 4.0))]
    pub margin: Option<f64>,
}

/// How activations are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// All as halves.
    #[default]
    F16,
    /// In 16 bits with a scale and an offset, where that costs little; else as halves.
    U16,
}

/// How keys and values are handed out and in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// As halves.
    #[default]
    F16,
    /// In 16 bits, 0 in the middle.
    U16,
    /// In 8 bits, 0 in the middle.
    U8,
}

/// How many shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Shards {
    /// So many.
    Count(#[schemars(range(min = 1, max = MAX_LAYERS))] u32),
    /// As the model wants it.
    Fitting(Fitting),
}

/// The words for a number that the model decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fitting {
    /// As few as the memory allows.
    Auto,
    /// One for each layer.
    Layers,
}

impl Default for Shards {
    fn default() -> Self {
        Shards::Count(1)
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Halves of SmolLM2's ordinary values have 73 dB; its residual stream would have 30 in 16 bits.
const SQNR_DB: f64 = 60.0;
/// Another text reaches further than the calibration's, and what is cut off costs more than a
/// coarser step: SmolLM2's KL divergence is 2.8e-4 at 0, 2.3e-5 at 0.1, 7.2e-6 at 0.25.
const MARGIN: f64 = 0.25;

/// Two compilations side by side then fit a machine of 8 GB.
const SHARD_MEMORY_BYTES: u64 = 3_000_000_000;

impl Default for Params {
    fn default() -> Self {
        Params {
            prefill: 128,
            context: 512,
            residual_exponent: 0,
            ffn_exponent: 0,
            activations: Activations::F16,
            kv: Cache::F16,
            key_centre: None,
            place: Place::default(),
            shards: Shards::default(),
            shard_memory: None,
            sqnr_db: None,
            margin: None,
        }
    }
}

impl TypedStage for Graph {
    type Params = Params;
    type Order = Params;

    const SPEC: StageSpec = StageSpec {
        kind: "graph",
        version: 4,
        summary: "write the decoder as ONNX, prefill and decode over one set of weights",
        gives: "onnx",
        inputs: &[
            InputSpec {
                name: "model",
                accepts: &["model"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "weights",
                accepts: &["weights"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "calibration",
                accepts: &["calibration"],
                required: false,
                many: false,
            },
        ],
        params: &[
            "prefill",
            "context",
            "residual_exponent",
            "ffn_exponent",
            "activations",
            "kv",
            "key_centre",
            "place",
            "shards",
            "shard_memory",
            "sqnr_db",
            "margin",
        ],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn check(params: &Params, slots: &[&str]) -> Vec<ParamProblem> {
        let problem = |path: &str, message: String| ParamProblem {
            path: path.into(),
            problem: Problem::new("kiln::plan::parameter", message),
        };
        let mut problems = vec![];
        if params.context <= params.prefill {
            let (context, prefill) = (params.context, params.prefill);
            problems.push(problem(
                "context",
                format!("`context` is {context}: it must be above `prefill`, which is {prefill}"),
            ));
        }
        let centres = params.key_centre == Some(KeyCentring::Calibration);
        match (params.rounds(), centres, slots.contains(&"calibration")) {
            (true, _, false) => problems.push(problem(
                "",
                "codes want their ranges: give a `calibration`".into(),
            )),
            (_, true, false) => {
                let message = "`key_centre = \"calibration\"` wants the means of the keys: give a \
                               `calibration`";
                problems.push(problem("key_centre", message.into()));
            }
            (false, false, true) => {
                let message = "nothing is chosen by the `calibration`: say `activations = \
                               \"u16\"`, a `kv`, or `key_centre = \"calibration\"`";
                problems.push(problem("", message.into()));
            }
            _ => {}
        }
        if params.shard_memory.is_some() && params.shards != Shards::Fitting(Fitting::Auto) {
            let message =
                "`shard_memory` says what `shards = \"auto\"` may take: nothing asks for it here";
            problems.push(problem("shard_memory", message.into()));
        }
        if let Some(Err(why)) = params.shard_memory.as_deref().map(parse_bytes) {
            problems.push(problem("shard_memory", why));
        }
        problems
    }

    fn expand(mut params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let model = inputs.one("model")?.part("model.json")?;
        let given = &inputs.one("weights")?.parts;
        let weights = Weights::new(
            given
                .iter()
                .map(|(name, part)| (name.as_str(), &part.facts, part.content.digest)),
        )?;
        let facts: ModelFacts = model.facts.read()?;
        check_model(&facts)?;
        weights.check(&facts)?;
        params.key_centre = KeyCentring::of(params.key_centre, &facts)?;
        // What chooses grids is in the key, and only if grids are chosen.
        let chooses = params.rounds();
        // So is the number of shards, not what it was chosen by.
        params.shards = Shards::Count(params.count_shards(inputs.one("weights")?, &facts)?);
        params.shard_memory = None;
        params.sqnr_db = chooses.then_some(params.sqnr_db.unwrap_or(SQNR_DB));
        params.margin = chooses.then_some(params.margin.unwrap_or(MARGIN));
        let mut order = Order::new("", params).input("model.json", model);
        if let Some(calibration) = inputs.optional("calibration") {
            if chooses {
                order = order.input(CALIBRATION, calibration.part(CALIBRATION)?);
            }
            if order.params.key_centre == Some(KeyCentring::Calibration) {
                order = order.input(KEY_MEANS, calibration.part(KEY_MEANS)?);
            }
        }
        Ok(vec![given.iter().fold(order, |order, (name, part)| {
            order.input(format!("weights/{name}"), part)
        })])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let model: ModelFacts = job.input("model.json")?.facts.read()?;
        let weights = Weights::new(weight_parts(job))?;
        check_model(&model)?;
        weights.check(&model)?;

        let centres = KeyCentring::centres(params.key_centre, params.context, &model, job)?;
        let mut outputs = Outputs::new();
        let mut grids = BTreeMap::new();
        if params.rounds() {
            let choice = params.choose(job, &model, &weights, &centres)?;
            let report = CanonJson::of(&choice.report)?.to_string();
            outputs.insert(
                PartName::new("encodings.json")?,
                job.write(report.as_bytes(), CanonJson::default())?,
            );
            grids = choice.grids;
        }
        let mut written = vec![];
        for (file, profile) in params
            .pieces(&model)?
            .into_iter()
            .flat_map(|piece| params.profiles(piece))
        {
            let facts = GraphFacts {
                name: profile.name.clone(),
                tokens: profile.tokens as u32,
                context: profile.context as u32,
                shard: profile.piece.shard(),
            };
            let graph = decoder(&model, &weights, &centres, &profile, &grids);
            outputs.insert(
                PartName::new(file)?,
                job.write(&graph.encode_to_vec(), CanonJson::of(&facts)?)?,
            );
            written.push(graph);
        }
        lint(&written.iter().collect::<Vec<_>>())?;
        let ledger = CanonJson::of(&Ledger::of(weight_parts(job))?)?;
        outputs.insert(
            PartName::new("ledger.json")?,
            job.write(ledger.to_string().as_bytes(), CanonJson::default())?,
        );
        for (name, _) in job
            .inputs()
            .filter(|(name, _)| ![CALIBRATION, KEY_MEANS].contains(name))
        {
            outputs.insert(PartName::new(name)?, job.pass(name)?);
        }
        Ok(outputs)
    }
}

/// The blobs of the weights, with their facts and sizes.
fn weight_parts<'a>(job: &'a Job) -> impl Iterator<Item = (&'a str, &'a CanonJson, Digest)> {
    job.inputs().filter_map(|(name, input)| {
        Some((name.strip_prefix("weights/")?, &input.facts, input.digest))
    })
}

impl Params {
    /// Whether anything but weights is held in codes.
    fn rounds(&self) -> bool {
        self.activations != Activations::F16 || self.kv != Cache::F16
    }

    /// The grids of values, by those of the float graph.
    fn choose(
        &self,
        job: &Job,
        model: &ModelFacts,
        weights: &Weights,
        centres: &KeyCentres,
    ) -> Result<Choice> {
        let calibration: calibration::Activations = serde_json::from_slice(&job.read(CALIBRATION)?)
            .context("kiln::graph::calibration", || format!("read {CALIBRATION}"))?;
        let wish = Wish {
            activations: self.activations,
            cache: self.kv,
            sqnr_db: self.sqnr_db.unwrap_or(SQNR_DB),
            margin: self.margin.unwrap_or(MARGIN) as f32,
        };
        let [(_, prefill), _] = self.profiles(Piece::Layers(Shard::whole(model)));
        let float: BTreeMap<String, Grid> = BTreeMap::new();
        choose(
            &decoder(model, weights, centres, &prefill, &float)
                .graph
                .unwrap_or_default(),
            &calibration,
            wish,
        )
    }

    /// The whole, and what it is cut into.
    fn pieces(&self, model: &ModelFacts) -> Result<Vec<Piece>> {
        let cut = match self.shards {
            Shards::Count(count) => Shard::cut(model, count, self.place)?,
            Shards::Fitting(_) => vec![],
        };
        let cut = cut.into_iter().filter(|shard| !shard.is_whole());
        let layers = [Shard::whole(model)]
            .into_iter()
            .chain(cut)
            .map(Piece::Layers);
        Ok(layers.chain(self.place.on_cpu().map(Piece::End)).collect())
    }

    /// Into how many shards `model` is cut.
    fn count_shards(&self, weights: &Manifest, model: &ModelFacts) -> Result<u32> {
        match self.shards {
            Shards::Count(count) => return Shard::cut(model, count, self.place).map(|_| count),
            Shards::Fitting(Fitting::Layers) => return Ok(model.block_count),
            Shards::Fitting(Fitting::Auto) => {}
        }
        let given = self.shard_memory.as_deref().map(parse_bytes).transpose();
        let allowed = given
            .map_err(|why| Problem::new("kiln::plan::parameter", why))?
            .unwrap_or(SHARD_MEMORY_BYTES);
        let parts = weights
            .parts
            .iter()
            .map(|(name, part)| (name.as_str(), part));
        let compilations = Compilations::new(model, parts, ROLES.len(), self.place);
        for count in 1..=model.block_count {
            if compilations.largest(count)? <= allowed {
                return Ok(count);
            }
        }
        Err(Problem::new(
            "kiln::graph::shards",
            format!(
                "no number of shards can be compiled in {}: one layer a shard takes {}",
                bytes(allowed),
                bytes(compilations.largest(model.block_count)?)
            ),
        )
        .help("raise `shard_memory`, or hold embedding and head in fewer bytes"))
    }

    /// The two graphs of `piece`, under the names that Genie understands.
    fn profiles(&self, piece: Piece) -> [(String, Profile); 2] {
        let profile = |kind: &str, tokens: u32| Profile {
            name: format!("{kind}_ar{tokens}_cl{}_{}", self.context, piece.suffix()),
            tokens: tokens.into(),
            context: self.context.into(),
            residual_exponent: self.residual_exponent as i32,
            ffn_exponent: self.ffn_exponent as i32,
            piece,
        };
        let [prefill, decode] = ROLES.map(|role| format!("{}.onnx", piece.graph_stem(role)));
        [
            (prefill, profile("prompt", self.prefill)),
            (decode, profile("token", 1)),
        ]
    }
}

/// Whether the one form of decoder fits `model`.
fn check_model(model: &ModelFacts) -> Result<()> {
    let numbers = [
        model.block_count,
        model.hidden,
        model.ffn,
        model.heads,
        model.kv_heads,
        model.head_dim,
        model.vocab,
    ];
    let problem = |message: String| Err(Problem::new("kiln::graph::model", message));
    if !["llama", "qwen2"].contains(&model.architecture.as_str()) {
        return problem(format!(
            "no graph is known for architecture `{}`; `llama` and `qwen2` are",
            model.architecture
        ));
    }
    if model.block_count > MAX_LAYERS {
        return problem(format!(
            "{} layers are too many: at most {MAX_LAYERS}",
            model.block_count
        ));
    }
    if numbers.contains(&0)
        || !model.heads.is_multiple_of(model.kv_heads)
        || !model.head_dim.is_multiple_of(2)
    {
        return problem(format!(
            "layers, widths and heads must be at least 1, heads a multiple of key heads, head \
             width even: {model:?}"
        ));
    }
    Ok(())
}
