//! `graph`: the decoder as two ONNX files, prefill and decode, over one set of weights. Topology only: the files point
//! at the blobs of the weights, which are passed on untouched.

mod decoder;
mod weights;

use prost::Message;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{InputSpec, Inputs, Job, Order, Outputs, ParamProblem, PartName, StageSpec, TypedStage};
use crate::base::{CanonJson, Digest, Problem, Result};
use crate::model::facts::{GraphFacts, ModelFacts};
use crate::model::ledger::Ledger;
use decoder::{Profile, decoder};
use weights::Weights;

/// Longest context of a graph, in tokens: what Genie's own exports go up to, and far above what a phone's memory holds.
const MAX_CONTEXT: u32 = 1 << 16;
/// Largest k and j: 2^-12 leaves a half of 1 with its full precision, and nothing seen needs more than 2^-4.
const MAX_EXPONENT: u32 = 12;
/// Several times the deepest decoder there is (126 layers).
const MAX_LAYERS: u32 = 1024;

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
    /// The residual stream is held times `2^-residual_exponent`, for models that would overflow a half.
    #[schemars(range(max = MAX_EXPONENT))]
    pub residual_exponent: u32,
    /// gate*up is held times `2^-ffn_exponent`, likewise.
    #[schemars(range(max = MAX_EXPONENT))]
    pub ffn_exponent: u32,
}

impl Default for Params {
    fn default() -> Self {
        Params { prefill: 128, context: 512, residual_exponent: 0, ffn_exponent: 0 }
    }
}

impl TypedStage for Graph {
    type Params = Params;
    type Order = Params;

    const SPEC: StageSpec = StageSpec {
        kind: "graph",
        version: 2,
        summary: "write the decoder as ONNX, prefill and decode over one set of weights",
        gives: "onnx",
        inputs: &[
            InputSpec { name: "model", accepts: &["model"], required: true, many: false },
            InputSpec { name: "weights", accepts: &["weights"], required: true, many: false },
        ],
        params: &["prefill", "context", "residual_exponent", "ffn_exponent"],
        keyed: &[],
        reaches_outside: false,
    };

    fn check(params: &Params, _slots: &[&str]) -> Vec<ParamProblem> {
        let problem = |path: &str, message: String| ParamProblem {
            path: path.into(),
            problem: Problem::new("kiln::graph::parameter", message),
        };
        let mut problems = vec![];
        if params.prefill == 0 {
            problems.push(problem("prefill", "a prefill graph takes at least one token".into()));
        }
        if params.context <= params.prefill.max(1) || params.context > MAX_CONTEXT {
            let (context, prefill) = (params.context, params.prefill);
            problems.push(problem(
                "context",
                format!("`context` is {context}: it must be above `prefill` ({prefill}) and at most {MAX_CONTEXT}"),
            ));
        }
        for (name, exponent) in [("residual_exponent", params.residual_exponent), ("ffn_exponent", params.ffn_exponent)]
        {
            if exponent > MAX_EXPONENT {
                problems.push(problem(name, format!("`{name}` is {exponent}: at most {MAX_EXPONENT}")));
            }
        }
        problems
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let model = inputs.one("model")?.part("model.json")?;
        let given = &inputs.one("weights")?.parts;
        let weights = Weights::new(given.iter().map(|(name, part)| (name.as_str(), &part.facts, part.content.digest)))?;
        let facts: ModelFacts = model.facts.read()?;
        check_model(&facts)?;
        weights.check(&facts)?;
        let order = Order::new("", params).input("model.json", model);
        Ok(vec![given.iter().fold(order, |order, (name, part)| order.input(format!("weights/{name}"), part))])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let model: ModelFacts = job.input("model.json")?.facts.read()?;
        let weights = Weights::new(weight_parts(job))?;
        check_model(&model)?;
        weights.check(&model)?;

        let mut outputs = Outputs::new();
        for (file, profile) in params.profiles() {
            let facts = GraphFacts {
                name: profile.name.clone(),
                tokens: profile.tokens as u32,
                context: profile.context as u32,
            };
            let bytes = decoder(&model, &weights, &profile).encode_to_vec();
            outputs.insert(PartName::new(file)?, job.write(&bytes, CanonJson::of(&facts)?)?);
        }
        let ledger = CanonJson::of(&Ledger::of(weight_parts(job))?)?;
        outputs.insert(PartName::new("ledger.json")?, job.write(ledger.to_string().as_bytes(), CanonJson::default())?);
        for (name, _) in job.inputs() {
            outputs.insert(PartName::new(name)?, job.pass(name)?);
        }
        Ok(outputs)
    }
}

/// The blobs of the weights, with their facts and sizes.
fn weight_parts<'a>(job: &'a Job) -> impl Iterator<Item = (&'a str, &'a CanonJson, Digest)> {
    job.inputs().filter_map(|(name, input)| Some((name.strip_prefix("weights/")?, &input.facts, input.digest)))
}

impl Params {
    /// The two graphs, under the names that Genie understands.
    fn profiles(&self) -> [(&'static str, Profile); 2] {
        let profile = |kind: &str, tokens: u32| Profile {
            name: format!("{kind}_ar{tokens}_cl{}_1_of_1", self.context),
            tokens: tokens.into(),
            context: self.context.into(),
            residual_exponent: self.residual_exponent as i32,
            ffn_exponent: self.ffn_exponent as i32,
        };
        [("prefill.onnx", profile("prompt", self.prefill)), ("decode.onnx", profile("token", 1))]
    }
}

/// Whether the one form of decoder fits `model`.
fn check_model(model: &ModelFacts) -> Result<()> {
    let numbers =
        [model.block_count, model.hidden, model.ffn, model.heads, model.kv_heads, model.head_dim, model.vocab];
    let problem = |message: String| Err(Problem::new("kiln::graph::model", message));
    if !["llama", "qwen2"].contains(&model.architecture.as_str()) {
        return problem(format!(
            "no graph is known for architecture `{}`; `llama` and `qwen2` are",
            model.architecture
        ));
    }
    if model.block_count > MAX_LAYERS {
        return problem(format!("{} layers are too many: at most {MAX_LAYERS}", model.block_count));
    }
    if numbers.contains(&0) || !model.heads.is_multiple_of(model.kv_heads) || !model.head_dim.is_multiple_of(2) {
        return problem(format!(
            "layers, widths and heads must be at least 1, heads a multiple of key heads, head width even: {model:?}"
        ));
    }
    Ok(())
}
