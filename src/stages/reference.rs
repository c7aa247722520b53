//! `reference`: the predictions of the model itself, with exactly dequantized weights, in f32.
//!
//! One order runs all windows, so that a weight is dequantized once for many of them. Each window
//! is a part of its own, so that a candidate's score of a window depends on that window only.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Blob, Demand, InputSpec, Inputs, Isolation, Job, Order, Outputs, Part, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::model::{MODEL, TOKENIZER, check_tokenizer};
use crate::artifact::reference::Greedy;
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::facts::ArrayFacts;
use crate::model::quant::{GgmlType, TensorFacts, decode_streaming};
use crate::model::reference::{LOGITS, Reference, Weights};
use crate::model::tokenizer::Tokenizer;
use crate::model::weight::Element;
use crate::run::{MAX_WINDOWS, windows};

/// Longest sequence: the memory of attention grows with its square.
const MAX_TOKENS: u32 = 4096;

/// The program itself, a tokenizer, buffers, and what an allocator keeps.
const OWN_BYTES: u64 = 128 << 20;

/// Tokens of the windows that are run together: enough that dequantizing the weights costs little
/// compared with multiplying by them.
const BATCH_TOKENS: usize = 1024;

/// The parameters.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Number of windows of the text that are run, each from an empty context.
    #[serde(default = "default_windows")]
    #[schemars(range(min = 1, max = MAX_WINDOWS))]
    windows: u32,
    /// Tokens of each window.
    #[serde(default = "default_tokens")]
    #[schemars(range(min = 2, max = MAX_TOKENS))]
    tokens: u32,
    /// The context that the model is opened with, in tokens; `tokens` by default. It only matters
    /// for models whose RoPE depends on it (LongRoPE): give the `context` of the graphs that are
    /// compared with the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    context: Option<u32>,
    /// A text to continue greedily, with its special tokens written out, except the first one that
    /// the model requires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    /// Maximum number of tokens of that continuation. A token that ends a text or a turn ends it
    /// earlier.
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

/// The stage.
pub struct ReferenceStage;

impl TypedStage for ReferenceStage {
    type Params = Params;
    type Order = Params;
    const SPEC: StageSpec = StageSpec {
        kind: "reference",
        version: 4,
        summary: "the predictions of the model itself on a text, in f32",
        output: "reference",
        inputs: &[
            InputSpec {
                name: "model",
                meaning: "The model.",
                accepts: &["model"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "text",
                meaning: "A UTF-8 text to evaluate on.",
                accepts: &["file"],
                required: true,
                many: false,
            },
        ],
        params: &["windows", "tokens", "context", "prompt", "greedy"],
        keyed: &[],
        reaches_outside: false,
        measures: true,
    };

    fn foresee(_: &Params, inputs: &Inputs) -> Result<()> {
        check_tokenizer(inputs)
    }

    fn expand(mut params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let model = inputs.one("model")?;
        let spec: DecoderSpec = model.part(MODEL)?.facts.read()?;
        if !spec.depends_on_context() {
            // It would only change the key.
            params.context = None;
        }
        let (_, text) = inputs.one("text")?.only()?;
        let peak = demand(&params, &spec);
        let mut order = Order::new("", params).input("text", text).demand(peak);
        for name in [MODEL, TOKENIZER] {
            order = order.input(name, model.part(name)?);
        }
        for (name, part) in model.under("tensors") {
            order = order.input(format!("tensors/{name}"), part);
        }
        Ok(vec![order])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let spec: DecoderSpec = job.input(MODEL)?.facts.read()?;
        let tokenizer = Tokenizer::from_metadata(&job.read(TOKENIZER)?)?;
        let text = job.read("text")?;
        let texts = windows(&text, &tokenizer, params.windows, params.tokens)?;
        let prompt = match &params.prompt {
            Some(prompt) => Some(tokenizer.encode_prompt(prompt)?),
            None => None,
        };

        let weights = FileWeights::new(job)?;
        let model = Reference::new(&spec, &weights, params.context.unwrap_or(params.tokens));
        let batch = (BATCH_TOKENS / params.tokens as usize).max(1);
        let count = texts.len() as u64;
        let mut outputs = Outputs::new();
        for (batch_index, texts) in texts.chunks(batch).enumerate() {
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let first = batch_index * batch;
            let states = model.states(&texts, |_| {
                job.progress(first as u64, count, "windows");
                job.check_cancelled()
            })?;
            for (index, state) in states.iter().enumerate() {
                job.check_cancelled()?;
                let tokens = texts[index];
                let mut sink = job.create()?;
                model.logits(state, |logits| write_f32(&mut sink, logits))?;
                let facts = ArrayFacts {
                    shape: vec![tokens.len() as u64, spec.vocab.into()],
                    element: Element::F32,
                };
                let logits = Part {
                    content: sink.finish()?,
                    facts: CanonJson::of(&facts)?,
                };
                let folder = format!("window-{:03}", first + index);
                outputs.insert(PartName::new(format!("{folder}/logits"))?, logits);
                let text = serde_json::to_vec(tokens)
                    .context(Code::ReferenceTokens, || "serialize the tokens".into())?;
                outputs.insert(
                    PartName::new(format!("{folder}/tokens.json"))?,
                    job.write(&text, CanonJson::default())?,
                );
            }
        }
        if let Some(prompt) = prompt {
            let greedy = continue_greedily(&model, &tokenizer, prompt, params.greedy, job)?;
            let text = CanonJson::of(&greedy)?.to_string();
            outputs.insert(
                PartName::new("greedy.json")?,
                job.write(text.as_bytes(), CanonJson::default())?,
            );
        }
        outputs.insert(PartName::new(MODEL)?, job.pass(MODEL)?);
        Ok(outputs)
    }
}

fn continue_greedily(
    model: &Reference,
    tokenizer: &Tokenizer,
    prompt: Vec<u32>,
    most_tokens: u32,
    job: &Job,
) -> Result<Greedy> {
    let choices = model.greedy(
        &prompt,
        most_tokens as usize,
        tokenizer.stop_tokens(),
        |done| {
            job.progress(done as u64, most_tokens.into(), "tokens");
            job.check_cancelled()
        },
    )?;
    let (mut tokens, mut gaps) = (vec![], vec![]);
    for choice in choices {
        tokens.push(choice.token);
        gaps.push(choice.gap);
    }
    let ended = match tokens.last() {
        Some(last) => tokenizer.stop_tokens().contains(last),
        None => false,
    };
    let text = tokenizer.decode(&tokens)?;
    Ok(Greedy {
        prompt,
        tokens,
        ended,
        gaps,
        text,
    })
}

/// The larger of two peaks. A piece of the logits twice, which is all logits of a small model. Or
/// the values of a layer: of each token of a batch the residual stream and what is computed from
/// it, and of one text the scores of the heads that share a key.
fn demand(params: &Params, spec: &DecoderSpec) -> Demand {
    let [tokens, vocab, ffn, hidden] =
        [params.tokens, spec.vocab, spec.ffn, spec.hidden].map(u64::from);
    let group = u64::from(spec.heads.div_ceil(spec.kv_heads.max(1)));
    let batch_tokens = (params.windows as u64 * tokens)
        .min(BATCH_TOKENS as u64)
        .max(tokens);
    let logits = 2 * (tokens * vocab).min((LOGITS as u64).max(vocab));
    let layer = batch_tokens * (2 * ffn + 8 * hidden) + tokens * tokens * group;
    let memory_bytes = logits
        .max(layer)
        .saturating_mul(4)
        .saturating_add(OWN_BYTES);
    let threads = match std::thread::available_parallelism() {
        Ok(count) => count.get() as u32,
        Err(_) => 1,
    };
    Demand {
        memory_bytes,
        threads,
        isolation: Isolation::Process,
    }
}

fn write_f32(sink: &mut impl Write, values: &[f32]) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    for chunk in values.chunks(CHUNK) {
        let mut bytes = Vec::with_capacity(4 * chunk.len());
        for value in chunk {
            bytes.extend(value.to_le_bytes());
        }
        sink.write_all(&bytes)
            .context(Code::Io, || "write logits".into())?;
    }
    Ok(())
}

/// The tensors of the GGUF by name, which are dequantized when they are read.
struct FileWeights<'a>(BTreeMap<&'a str, StoredTensor>);

/// The bytes of a tensor.
struct StoredTensor {
    blob: Blob,
    ggml: &'static GgmlType,
    columns: u64,
}

impl<'a> FileWeights<'a> {
    fn new(job: &Job<'a>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (input, ingredient) in job.inputs() {
            if let Some(name) = input.strip_prefix("tensors/") {
                let facts = ingredient.facts.read()?;
                tensors.insert(name, StoredTensor::new(name, facts, job.read(input)?)?);
            }
        }
        Ok(FileWeights(tensors))
    }
}

impl StoredTensor {
    /// Refused: a blob whose size does not follow from type and shape.
    fn new(name: &str, facts: TensorFacts, blob: Blob) -> Result<Self> {
        let ggml = GgmlType::by_name(&facts.ggml_type)?;
        let columns = facts.shape.last().copied().unwrap_or(0);
        let tensor = StoredTensor {
            blob,
            ggml,
            columns,
        };
        let bytes = size_bytes(ggml, &facts.shape);
        if bytes != Some(tensor.blob.len() as u64) || ggml.bytes(columns).is_none() {
            let message = format!(
                "`{name}` has {} bytes, which is no {} of shape {:?}",
                tensor.blob.len(),
                ggml.name,
                facts.shape
            );
            return Err(Problem::new(Code::ReferenceTensor, message));
        }
        Ok(tensor)
    }

    /// Where `row` begins in the blob.
    fn byte_offset(&self, row: u64) -> Option<u64> {
        self.ggml.bytes(row.checked_mul(self.columns)?)
    }

    /// The bytes of `rows`.
    fn blocks(&self, rows: &Range<usize>) -> Option<Blob> {
        let start = self.byte_offset(rows.start as u64)?;
        let end = self.byte_offset(rows.end as u64)?;
        self.blob.slice(start..end)
    }

    /// The values of `rows`. What was read is released from memory.
    fn decode(&self, rows: &Range<usize>) -> Option<Vec<f32>> {
        let blocks = self.blocks(rows)?;
        let mut values = vec![0.0; rows.len() * self.columns as usize];
        decode_streaming(self.ggml, self.ggml.format, &blocks, &mut values);
        blocks.evict(0..blocks.len());
        Some(values)
    }
}

fn size_bytes(ggml: &GgmlType, shape: &[u64]) -> Option<u64> {
    let mut values = 1u64;
    for extent in shape {
        values = values.checked_mul(*extent)?;
    }
    ggml.bytes(values)
}

impl Weights for FileWeights<'_> {
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let tensor = self.0.get(name);
        let values = tensor.and_then(|tensor| tensor.decode(&rows));
        values.ok_or_else(|| {
            let message = format!("`{name}` has no rows {rows:?}");
            Problem::new(Code::ReferenceTensor, message)
        })
    }
}
