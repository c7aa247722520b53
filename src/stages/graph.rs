//! `graph`: the decoder as two ONNX files, prefill and decode, over one set of weights. The files
//! hold the topology only and refer to the blobs of the weights, which are passed on unchanged.

mod activations;
mod attention;
mod centre;
mod centring;
mod classes;
mod decoder;
mod operators;
mod sums;
mod weights;
mod window;

use std::collections::BTreeMap;

use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Manifest, Order, Outputs, ParamProblem, PartName,
    StageSpec, TypedStage,
};
use crate::artifact::context::ROLES;
use crate::artifact::model::{self, MODEL};
use crate::base::{CanonJson, Code, Context, Digest, Problem, Result, bytes, parse_bytes};
use crate::compile::Compilations;
use crate::model::calibration::{self, KEY_MEANS};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::shards::{EMBEDDINGS, Place, ROWS, Shard};
use crate::model::facts::GraphFacts;
use crate::model::onnx::{Grid, lint, weight_uses};
use crate::model::quant_report::QuantReport;
use activations::{Choice, Policy, check_linear_layers, choose};
use centre::KeyCentres;
use centring::KeyCentring;
use decoder::{Profile, Subgraph, decoder};
use weights::Weights;

/// Longest context of a graph, in tokens: as in Genie's own exports, and far more than fits the
/// memory of a phone.
const MAX_CONTEXT: u32 = 1 << 16;
/// Largest k and j: fp16 holds 2^-12 with its full precision, and no known model needs more than
/// 2^-4.
const MAX_EXPONENT: u32 = 12;
/// More shards than any decoder has layers.
const MAX_SHARDS: u32 = 1024;

/// Why keys are not centred without floats.
const FLOAT_CENTRES: &str = "`float = \"never\"` needs `key_centre = \"none\"`: the constants of \
                             centred keys are numbers, not codes";

/// The part of a calibration that grids are chosen by.
const CALIBRATION: &str = "activations.json";

/// The stage `graph`.
pub struct Graph;

/// The parameters.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Tokens of one prefill call.
    #[schemars(range(min = 1))]
    pub prefill: u32,
    /// Tokens that attention covers in both graphs, past and new ones together; more than
    /// `prefill`.
    #[schemars(range(min = 2, max = MAX_CONTEXT))]
    pub context: u32,
    /// The residual stream is stored times `2^-residual_exponent`, for models whose values would
    /// overflow fp16.
    #[schemars(range(max = MAX_EXPONENT))]
    pub residual_exponent: u32,
    /// `gate * up` is stored times `2^-ffn_exponent`, for the same reason.
    #[schemars(range(max = MAX_EXPONENT))]
    pub ffn_exponent: u32,
    /// How activations are stored; `u16` needs a `calibration`.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Activations::default()))]
    pub activations: Activations,
    /// Which values the graphs of the layers compute in floating point.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Float::default()))]
    pub float: Float,
    /// How the graphs take and return the KV cache; `u16` and `u8` need a `calibration`.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Cache::default()))]
    pub kv: Cache,
    /// What is subtracted from every rotated key, which changes no attention and keeps keys and
    /// scores small. By default `bias` where the model has key biases, otherwise `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_centre: Option<KeyCentring>,
    /// The processors that compute embedding and head. On the CPU each is a graph of its own.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Place::default()))]
    pub place: Place,
    /// Number of shards that the layers are cut into, each compiled by itself; at most the number
    /// of layers.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Shards::default()))]
    pub shards: Shards,
    /// Memory that compiling one shard may take, for `shards = "auto"`. The default grows to 4/3
    /// of what one layer with embedding or head needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = SHARD_MEMORY))]
    pub shard_memory: Option<String>,
    /// An activation is stored in 16 bits only if its signal, outliers excluded, is at least this
    /// many dB above the rounding noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 120.0), extend("default" = SQNR_DB))]
    pub sqnr_db: Option<f64>,
    /// How far the range of an activation is extended on both sides, as a fraction of the range in
    /// the calibration.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 4.0), extend("default" = MARGIN))]
    pub margin: Option<f64>,
}

/// How activations are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// All in fp16.
    #[default]
    F16,
    /// In 16-bit codes with a scale and an offset where that loses little (`sqnr_db`) and an
    /// operator computes on them, otherwise in fp16. Linear layers whose weights have one scale for
    /// each row (`int8-channel`, `int4-channel`, `lpbq-*`) multiply these codes.
    U16,
}

/// Which values are in floating point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Float {
    /// Those that `activations` and `kv` do not store in codes.
    #[default]
    WhereNeeded,
    /// None, for chips without fp16: every value is in codes, whatever that loses. It needs
    /// `activations = "u16"`, `kv = "u8"` or `"u16"`, keys that are not centred, and linear layers
    /// whose weights have one scale for each row (`int8-channel`, `int4-channel`, `lpbq-*`).
    Never,
}

/// How the graphs take and return the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cache {
    /// In fp16.
    #[default]
    F16,
    /// In 16-bit codes; the middle code stands for 0.
    U16,
    /// In 8-bit codes; the middle code stands for 0.
    U8,
}

/// The number of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Shards {
    /// A number of shards.
    Count(#[schemars(range(min = 1, max = MAX_SHARDS))] u32),
    /// As many as follow from the model.
    Fitting(Fitting),
}

/// The names of numbers that follow from the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fitting {
    /// The least number of shards that can each be compiled within `shard_memory`.
    Auto,
    /// One per layer.
    Layers,
}

impl Default for Shards {
    fn default() -> Self {
        Shards::Count(1)
    }
}

/// A problem of the parameter `path`.
fn problem(path: &str, message: String) -> ParamProblem {
    ParamProblem {
        path: path.into(),
        problem: Problem::new(Code::PlanParameter, message),
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// SmolLM2's ordinary values have 73 dB in fp16, the inputs of most `ffn_down` 55 to 61 dB in 16
/// bits, its residual stream 30 dB. Over int8 weights, the KL divergence does not change at 55, and
/// grows by 3 % at 50.
const SQNR_DB: f64 = 55.0;
/// Another text has larger values than the calibration's, and clipping costs more than a coarser
/// step: SmolLM2's KL divergence is 2.8e-4 at 0, 2.3e-5 at 0.1, 7.2e-6 at 0.25.
const MARGIN: f64 = 0.25;

/// Two compilations at a time then fit a machine with 8 GB. The heads of many models need more: they
/// get a third more than that, since no number of shards needs less.
const SHARD_MEMORY: &str = "3GB";

impl Default for Params {
    fn default() -> Self {
        Params {
            prefill: 128,
            context: 512,
            residual_exponent: 0,
            ffn_exponent: 0,
            activations: Activations::F16,
            float: Float::WhereNeeded,
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
        version: 11,
        summary: "the decoder as ONNX: prefill and decode over one set of weights",
        output: "onnx",
        inputs: &[
            InputSpec {
                name: "model",
                meaning: "The model.",
                accepts: &["model"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "weights",
                meaning: "The weights of that model.",
                accepts: &["weights"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "calibration",
                meaning: "Statistics of the float graph with the same exponents: needed by \
                          `activations = \"u16\"`, `kv = \"u16\"` or `\"u8\"`, and `key_centre = \
                          \"calibration\"`.",
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
            "float",
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

    fn check(params: &Params, given: &[InputStage]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        if params.context <= params.prefill {
            let (context, prefill) = (params.context, params.prefill);
            problems.push(problem(
                "context",
                format!("expected more than `prefill`, which is {prefill}, found {context}"),
            ));
        }
        let centres = params.key_centre == Some(KeyCentring::Calibration);
        match (
            params.rounds(),
            centres,
            InputStage::fills(given, "calibration"),
        ) {
            (true, _, false) => problems.push(problem(
                "",
                "activations or a KV cache in integer codes need a `calibration`".into(),
            )),
            (_, true, false) => {
                let message = "`key_centre = \"calibration\"` needs a `calibration`";
                problems.push(problem("key_centre", message.into()));
            }
            (false, false, true) => {
                let message = "nothing uses the `calibration`: set `activations = \"u16\"`, `kv`, or \
                               `key_centre = \"calibration\"`, or remove it";
                problems.push(problem("", message.into()));
            }
            _ => {}
        }
        problems.extend(params.check_float());
        if params.shard_memory.is_some() && params.shards != Shards::Fitting(Fitting::Auto) {
            let message =
                "only `shards = \"auto\"` uses `shard_memory`: set it, or remove `shard_memory`";
            problems.push(problem("shard_memory", message.into()));
        }
        if let Some(Err(why)) = params.shard_memory.as_deref().map(parse_bytes) {
            problems.push(problem("shard_memory", why));
        }
        problems
    }

    fn foresee(params: &Params, inputs: &Inputs) -> Result<()> {
        if let Some(model) = model::decoder(inputs)? {
            params.check_model(&model)?;
            KeyCentring::resolve(params.key_centre, &model)?;
        }
        Ok(())
    }

    fn expand(mut params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let model = inputs.one("model")?.part(MODEL)?;
        let manifest = inputs.one("weights")?;
        let mut parts = vec![];
        for (name, part) in &manifest.parts {
            parts.push((name.as_str(), &part.facts, part.content.digest));
        }
        let weights = Weights::new(parts.into_iter())?;
        let spec: DecoderSpec = model.facts.read()?;
        params.check_model(&spec)?;
        weights.check(&spec)?;
        weights.check_lookup()?;
        // The key has the resolved values: the default centring, the number of shards instead of
        // the memory that it follows from, and the limits of grids only if grids are chosen.
        params.key_centre = KeyCentring::resolve(params.key_centre, &spec)?;
        if params.float == Float::Never {
            params.check_never(&spec, &weights)?;
        }
        params.shards = Shards::Count(params.count_shards(manifest, &spec)?);
        params.shard_memory = None;
        let rounds = params.rounds();
        if rounds {
            if params.float == Float::WhereNeeded {
                params.sqnr_db.get_or_insert(SQNR_DB);
            }
            params.margin.get_or_insert(MARGIN);
        } else {
            (params.sqnr_db, params.margin) = (None, None);
        }
        let mut order = Order::new("", params).input(MODEL, model);
        if let Some(calibration) = inputs.optional("calibration") {
            if rounds {
                order = order.input(CALIBRATION, calibration.part(CALIBRATION)?);
            }
            if order.params.key_centre == Some(KeyCentring::Calibration) {
                order = order.input(KEY_MEANS, calibration.part(KEY_MEANS)?);
            }
        }
        for (name, part) in &manifest.parts {
            order = order.input(format!("weights/{name}"), part);
        }
        Ok(vec![order])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let model: DecoderSpec = job.input(MODEL)?.facts.read()?;
        let weights = Weights::new(weight_parts(job))?;
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
        for subgraph in params.subgraphs(&model)? {
            for (file, profile) in params.profiles(subgraph) {
                let graph = decoder(&model, &weights, &centres, &profile, &grids)?;
                let facts = GraphFacts {
                    name: profile.name,
                    tokens: profile.tokens as u32,
                    context: profile.context as u32,
                    shard: subgraph.shard(),
                    weights: weight_uses(&graph)?,
                };
                let part = job.write(&graph.encode_to_vec(), CanonJson::of(&facts)?)?;
                outputs.insert(PartName::new(file)?, part);
                written.push(graph);
            }
        }
        lint(&written.iter().collect::<Vec<_>>())?;
        let report = CanonJson::of(&QuantReport::of(weight_parts(job))?)?;
        outputs.insert(
            PartName::new("quantization.json")?,
            job.write(report.to_string().as_bytes(), CanonJson::default())?,
        );
        for (name, _) in job.inputs() {
            if name != CALIBRATION && name != KEY_MEANS {
                outputs.insert(PartName::new(name)?, job.pass(name)?);
            }
        }
        Ok(outputs)
    }
}

/// The blobs of the weights, with their facts and digests.
fn weight_parts<'a>(job: &'a Job) -> impl Iterator<Item = (&'a str, &'a CanonJson, Digest)> {
    job.inputs().filter_map(|(name, input)| {
        Some((name.strip_prefix("weights/")?, &input.facts, input.digest))
    })
}

impl Params {
    /// Whether activations or caches are stored in codes.
    fn rounds(&self) -> bool {
        self.activations != Activations::F16 || self.kv != Cache::F16
    }

    /// The problems of `float` with the other parameters.
    fn check_float(&self) -> Vec<ParamProblem> {
        if self.float == Float::WhereNeeded {
            return vec![];
        }
        let mut problems = vec![];
        let mut refuse = |path, message: &str| problems.push(problem(path, message.into()));
        if self.activations != Activations::U16 {
            refuse("float", "`float = \"never\"` needs `activations = \"u16\"`");
        }
        if self.kv == Cache::F16 {
            let message = "`float = \"never\"` needs `kv = \"u8\"` or `kv = \"u16\"`";
            refuse("float", message);
        }
        if self.sqnr_db.is_some() {
            let message = "`float = \"never\"` stores every value in codes, whatever its \
                           `sqnr_db`: remove one of them";
            refuse("sqnr_db", message);
        }
        if !matches!(self.key_centre, None | Some(KeyCentring::None)) {
            refuse("key_centre", FLOAT_CENTRES);
        }
        problems
    }

    /// Refuses what cannot be in codes: after the default of `key_centre`.
    fn check_never(&self, model: &DecoderSpec, weights: &Weights) -> Result<()> {
        if self.key_centre.is_some() {
            return Err(Problem::new(Code::GraphKeyCentre, FLOAT_CENTRES)
                .help("`key_centre = \"none\"` computes without them"));
        }
        let (centres, grids) = Default::default();
        for shard in Shard::cut(model, 1, self.place)? {
            let [(_, prefill), _] = self.profiles(Subgraph::Layers(shard));
            let graph = decoder(model, weights, &centres, &prefill, &grids)?;
            check_linear_layers(&graph)?;
        }
        Ok(())
    }

    /// Refuses a decoder with unsupported parts, by building a graph without weights.
    fn check_model(&self, model: &DecoderSpec) -> Result<()> {
        let [(_, prefill), _] = self.profiles(Subgraph::Layers(Shard::whole(model)));
        let (weights, centres, grids) = Default::default();
        decoder(model, &weights, &centres, &prefill, &grids)?;
        Ok(())
    }

    /// The grids of values, chosen on the float graph.
    fn choose(
        &self,
        job: &Job,
        model: &DecoderSpec,
        weights: &Weights,
        centres: &KeyCentres,
    ) -> Result<Choice> {
        let calibration: calibration::Activations = serde_json::from_slice(&job.read(CALIBRATION)?)
            .context(Code::GraphCalibration, || format!("read {CALIBRATION}"))?;
        let policy = Policy {
            activations: self.activations,
            cache: self.kv,
            float: self.float,
            sqnr_db: self.sqnr_db.unwrap_or(SQNR_DB),
            margin: self.margin.unwrap_or(MARGIN) as f32,
        };
        let [(_, prefill), _] = self.profiles(Subgraph::Layers(Shard::whole(model)));
        let no_grids: BTreeMap<String, Grid> = BTreeMap::new();
        let float = decoder(model, weights, centres, &prefill, &no_grids)?;
        let mut choice = choose(&float, &calibration, policy)?;
        if self.float == Float::Never
            && let Some(rows) = choice.grids.get(ROWS)
        {
            // The same rows, if the CPU looks them up.
            choice.grids.insert(EMBEDDINGS.into(), *rows);
        }
        Ok(choice)
    }

    /// The whole decoder, which ONNX Runtime runs in `evaluate`, `calibrate` and `sensitivity`;
    /// then the shards, embedding and head that are compiled separately.
    fn subgraphs(&self, model: &DecoderSpec) -> Result<Vec<Subgraph>> {
        let mut subgraphs = vec![Subgraph::Layers(Shard::whole(model))];
        if let Shards::Count(count) = self.shards {
            for shard in Shard::cut(model, count, self.place)? {
                if !shard.is_whole() {
                    subgraphs.push(Subgraph::Layers(shard));
                }
            }
        }
        subgraphs.extend(self.place.on_cpu().map(Subgraph::Outer));
        Ok(subgraphs)
    }

    /// The number of shards that `model` is cut into.
    fn count_shards(&self, weights: &Manifest, model: &DecoderSpec) -> Result<u32> {
        match self.shards {
            Shards::Count(count) => {
                Shard::cut(model, count, self.place)?;
                return Ok(count);
            }
            Shards::Fitting(Fitting::Layers) => return Ok(model.block_count()),
            Shards::Fitting(Fitting::Auto) => {}
        }
        let parts = weights.parts.iter();
        let parts = parts.map(|(name, part)| (name.as_str(), part));
        let compilations = Compilations::new(model, parts, ROLES.len(), self.place);
        let least = compilations.largest(model.block_count())?;
        let allowed = self.memory_per_shard(least)?;
        for count in 1..=model.block_count() {
            if compilations.largest(count)? <= allowed {
                return Ok(count);
            }
        }
        Err(Problem::new(
            Code::GraphShards,
            format!(
                "no number of shards can be compiled in {}: one layer per shard needs {}",
                bytes(allowed),
                bytes(least)
            ),
        )
        .help("raise `shard_memory`, or store embedding and head in fewer bytes"))
    }

    /// The memory that compiling one shard may take, where one layer per shard needs `least`.
    fn memory_per_shard(&self, least: u64) -> Result<u64> {
        let parsed = |text| parse_bytes(text).map_err(|why| Problem::new(Code::PlanParameter, why));
        match &self.shard_memory {
            Some(text) => parsed(text),
            None => Ok(parsed(SHARD_MEMORY)?.max(least.saturating_add(least / 3))),
        }
    }

    /// The files and graphs of `subgraph`. Genie expects these names of graphs.
    fn profiles(&self, subgraph: Subgraph) -> [(String, Profile); 2] {
        let profile = |kind: &str, tokens: u32| Profile {
            name: format!("{kind}_ar{tokens}_cl{}_{}", self.context, subgraph.suffix()),
            tokens: tokens.into(),
            context: self.context.into(),
            residual_exponent: self.residual_exponent as i32,
            ffn_exponent: self.ffn_exponent as i32,
            subgraph,
        };
        let [prefill, decode] = ROLES.map(|role| format!("{}.onnx", subgraph.graph_stem(role)));
        [
            (prefill, profile("prompt", self.prefill)),
            (decode, profile("token", 1)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only the default grows: the heads of many models need more than 3 GB.
    #[test]
    fn the_default_memory_of_a_shard_fits_one_layer_with_the_head() {
        let memory = |shard_memory: Option<&str>, least| {
            let params = Params {
                shard_memory: shard_memory.map(String::from),
                ..Params::default()
            };
            params.memory_per_shard(least).unwrap()
        };
        assert_eq!(memory(None, 1_000_000_000), 3_000_000_000);
        assert_eq!(memory(None, 6_000_000_000), 8_000_000_000);
        assert_eq!(memory(Some("2GB"), 7_000_000_000), 2_000_000_000);
    }
}
