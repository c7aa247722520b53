//! `reference`: what the model itself says, its weights dequantized exactly and run in f32.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `model` | | the stage that inspected the GGUF |
//! | `text` | | the stage that gives a UTF-8 text to score on |
//! | `windows` | 8 | how many pieces of the text are run, each with nothing before it |
//! | `tokens` | 128 | tokens of each piece |
//! | `prompt` | none | a text to continue, special tokens spelled out |
//! | `greedy` | 16 | tokens of that continuation |
//!
//! One order runs all windows: the model is loaded once. Each window is a part of its own, so that a candidate's
//! score of a window depends on that window only.

use std::io::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Demand, InputSpec, Inputs, Isolation, Job, Manifest, Order, Outputs, ParamProblem, Part, PartName, StageSpec,
    TypedStage,
};
use crate::base::{CanonJson, Context, Problem, Result};
use crate::model::facts::{Element, ModelFacts, TensorFacts, WeightFacts};
use crate::model::quant::{GgmlType, decode_far};
use crate::model::reference::{Reference, Weights};
use crate::model::tokenizer::Tokenizer;
use crate::stages::windows::{MAX_WINDOWS, windows, within};

/// Longest sequence: attention takes memory by its square.
const MAX_TOKENS: u32 = 4096;

/// The program itself, a tokenizer, buffers, and what an allocator keeps.
const OWN_BYTES: u64 = 128 << 20;

/// Blocks of a tensor that are in memory at a time, beside their values.
const PIECE_BLOCKS: usize = 1 << 17;

/// See the module's table.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// How many pieces of the text are run, each with nothing before it.
    #[serde(default = "default_windows")]
    #[schemars(range(min = 1, max = MAX_WINDOWS))]
    windows: u32,
    /// Tokens of each piece.
    #[serde(default = "default_tokens")]
    #[schemars(range(min = 2, max = MAX_TOKENS))]
    tokens: u32,
    /// A text to continue, special tokens spelled out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    /// Tokens of that continuation.
    #[serde(default = "default_greedy")]
    #[schemars(range(min = 1, max = MAX_TOKENS))]
    greedy: u32,
}

fn default_windows() -> u32 {
    8
}

fn default_tokens() -> u32 {
    128
}

fn default_greedy() -> u32 {
    16
}

/// `greedy.json`: what the reference says after the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greedy {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The most probable tokens after it, one after the other.
    pub tokens: Vec<u32>,
    /// How far the logit of each stands above the second's.
    pub gaps: Vec<f32>,
    /// Those tokens as text.
    pub text: String,
}

/// The stage.
pub struct ReferenceStage;

impl TypedStage for ReferenceStage {
    type Params = Params;
    type Order = Params;
    const SPEC: StageSpec = StageSpec {
        kind: "reference",
        version: 1,
        summary: "what the model itself says of a text, in f32",
        gives: "reference",
        inputs: &[
            InputSpec { name: "model", accepts: &["model"], required: true, many: false },
            InputSpec { name: "text", accepts: &["file"], required: true, many: false },
        ],
        params: &["windows", "tokens", "prompt", "greedy"],
        keyed: &[],
        reaches_outside: false,
    };

    fn check(params: &Params, _: &[&str]) -> Vec<ParamProblem> {
        [
            within("windows", params.windows, 1, MAX_WINDOWS),
            within("tokens", params.tokens, 2, MAX_TOKENS),
            within("greedy", params.greedy, 1, MAX_TOKENS),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let model = inputs.one("model")?;
        let (_, text) = inputs.one("text")?.only()?;
        let demand = demand(&params, model)?;
        let mut order = Order::new("", params).input("text", text).demand(demand);
        for name in ["model.json", "tokenizer.json"] {
            order = order.input(name, model.part(name)?);
        }
        for (name, part) in model.under("tensors") {
            order = order.input(format!("tensors/{name}"), part);
        }
        Ok(vec![order])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let facts: ModelFacts = job.input("model.json")?.facts.read()?;
        let tokenizer = Tokenizer::from_metadata(&job.read("tokenizer.json")?)?;
        let windows = windows(&job.read("text")?, &tokenizer, params.windows, params.tokens)?;
        let prompt = params.prompt.as_deref().map(|prompt| tokenizer.encode(prompt)).transpose()?;

        let longest = prompt.as_ref().map_or(0, |prompt| prompt.len() + params.greedy as usize);
        let mut model = Reference::load(&facts, longest.max(params.tokens as usize), &FileWeights(job))?;
        let steps = windows.len() as u64 + u64::from(prompt.is_some());
        let mut outputs = Outputs::new();
        for (index, tokens) in windows.iter().enumerate() {
            job.check_cancelled()?;
            job.progress(index as u64, steps, "windows");
            let logits = model.logits(tokens)?;
            let shape = vec![tokens.len() as u64, u64::from(facts.vocab)];
            let folder = format!("window-{index:03}");
            outputs.insert(PartName::new(format!("{folder}/logits"))?, write_f32(job, &logits, shape)?);
            let tokens = serde_json::to_vec(tokens).context("kiln::reference::tokens", || "spell the tokens".into())?;
            outputs.insert(PartName::new(format!("{folder}/tokens.json"))?, job.write(&tokens, CanonJson::default())?);
        }
        if let Some(prompt) = prompt {
            job.check_cancelled()?;
            let choices = model.greedy(&prompt, params.greedy as usize)?;
            let tokens: Vec<u32> = choices.iter().map(|choice| choice.token).collect();
            let text = tokenizer.decode(&tokens)?;
            let gaps = choices.iter().map(|choice| choice.gap).collect();
            let greedy = CanonJson::of(&Greedy { prompt, tokens, gaps, text })?.to_string();
            outputs.insert(PartName::new("greedy.json")?, job.write(greedy.as_bytes(), CanonJson::default())?);
        }
        outputs.insert(PartName::new("model.json")?, job.pass("model.json")?);
        job.progress(steps, steps, "windows");
        Ok(outputs)
    }
}

/// Every weight as f32; of one window two copies of the logits, and what a layer holds: its scores, their mask added and
/// their softmax, or four values as wide as the feed-forward layer.
fn demand(params: &Params, model: &Manifest) -> Result<Demand> {
    let facts: ModelFacts = model.part("model.json")?.facts.read()?;
    let mut weights = 0u64;
    for (_, part) in model.under("tensors") {
        let facts: TensorFacts = part.facts.read()?;
        weights =
            weights.saturating_add(facts.shape.iter().fold(1u64, |product, extent| product.saturating_mul(*extent)));
    }
    let [tokens, vocab, heads, ffn] = [params.tokens, facts.vocab, facts.heads, facts.ffn].map(u64::from);
    let of_a_token = (2 * vocab).max((3 * tokens * heads).max(4 * ffn));
    let memory_bytes = weights.saturating_add(tokens * of_a_token).saturating_mul(4).saturating_add(OWN_BYTES);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    Ok(Demand { memory_bytes, threads, isolation: Isolation::Process })
}

fn write_f32(job: &Job, values: &[f32], shape: Vec<u64>) -> Result<Part> {
    const CHUNK: usize = 1 << 16;
    let mut sink = job.create()?;
    for chunk in values.chunks(CHUNK) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        sink.write_all(&bytes).context("kiln::io", || "write logits".into())?;
    }
    let facts = WeightFacts { shape, element: Element::F32, block: None, error: None };
    Ok(Part { content: sink.finish()?, facts: CanonJson::of(&facts)? })
}

/// The GGUF's tensors, exactly dequantized.
struct FileWeights<'a>(&'a Job<'a>);

impl Weights for FileWeights<'_> {
    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let input = format!("tensors/{name}");
        let facts: TensorFacts = self.0.input(&input)?.facts.read()?;
        let bytes = self.0.read(&input)?;
        let ggml = GgmlType::by_name(&facts.ggml_type)?;
        let values = facts.shape.iter().try_fold(1u64, |product, extent| product.checked_mul(*extent));
        if values.and_then(|values| ggml.bytes(values)) != Some(bytes.len() as u64) {
            return Err(Problem::new(
                "kiln::reference::tensor",
                format!("`{name}` has {} bytes, which is no {} of shape {:?}", bytes.len(), ggml.name, facts.shape),
            ));
        }
        let mut out = vec![0.0; values.unwrap_or(0) as usize];
        let mut rest = out.as_mut_slice();
        bytes.stream(PIECE_BLOCKS * ggml.block_bytes as usize, |blocks| {
            let next = rest.split_off_mut(..rest.len().min(PIECE_BLOCKS * ggml.block_len as usize));
            decode_far(ggml, ggml.format, blocks, next.unwrap_or_default());
            Ok::<(), Problem>(())
        })?;
        Ok(out)
    }
}
