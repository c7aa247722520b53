//! `reference`: the predictions of the model itself, its weights dequantized exactly and run in
//! f32.
//!
//! One order runs all windows, so that a weight is dequantized once for many of them. Each window
//! is a part of its own: a candidate's score of a window depends on that window only.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Blob, Demand, InputSpec, Inputs, Isolation, Job, Manifest, Order, Outputs, Part, PartName,
    StageSpec, TypedStage,
};
use crate::artifact::reference::Greedy;
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::facts::{ArrayFacts, TensorFacts};
use crate::model::quant::{GgmlType, decode_far};
use crate::model::reference::{LOGITS, Reference, Weights};
use crate::model::tokenizer::Tokenizer;
use crate::model::weight::Element;
use crate::run::{MAX_WINDOWS, windows};

/// Longest sequence: attention takes memory by its square.
const MAX_TOKENS: u32 = 4096;

/// The program itself, a tokenizer, buffers, and what an allocator keeps.
const OWN_BYTES: u64 = 128 << 20;

/// Windows are run together up to so many tokens: enough that dequantizing weights costs little
/// beside multiplying by them.
const TOGETHER: usize = 1024;

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
    /// A text to continue greedily, with its special tokens written out.
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
        version: 3,
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
        params: &["windows", "tokens", "prompt", "greedy"],
        keyed: &[],
        reaches_outside: false,
        measures: true,
    };

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
        let spec: DecoderSpec = job.input("model.json")?.facts.read()?;
        let tokenizer = Tokenizer::from_metadata(&job.read("tokenizer.json")?)?;
        let windows = windows(
            &job.read("text")?,
            &tokenizer,
            params.windows,
            params.tokens,
        )?;
        let prompt = params
            .prompt
            .as_deref()
            .map(|prompt| tokenizer.encode(prompt))
            .transpose()?;

        let weights = FileWeights::new(job)?;
        let model = Reference::new(&spec, &weights)?;
        let vocab = u64::from(spec.vocab);
        let together = (TOGETHER / params.tokens as usize).max(1);
        let steps = windows.len() as u64;
        let mut outputs = Outputs::new();
        for (group, some) in windows.chunks(together).enumerate() {
            let texts: Vec<&[u32]> = some.iter().map(Vec::as_slice).collect();
            let first = group * together;
            let states = model.states(&texts, |_| {
                job.progress(first as u64, steps, "windows");
                job.check_cancelled()
            })?;
            for (index, (tokens, state)) in (first..).zip(texts.iter().zip(&states)) {
                job.check_cancelled()?;
                let mut sink = job.create()?;
                model.logits(state, |logits| write_f32(&mut sink, logits))?;
                let shape = vec![tokens.len() as u64, vocab];
                let shape = ArrayFacts {
                    shape,
                    element: Element::F32,
                };
                let logits = Part {
                    content: sink.finish()?,
                    facts: CanonJson::of(&shape)?,
                };
                let folder = format!("window-{index:03}");
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
            let count = params.greedy as usize;
            let choices = model.greedy(&prompt, count, tokenizer.ends(), |done| {
                job.progress(done as u64, count as u64, "tokens");
                job.check_cancelled()
            })?;
            let tokens: Vec<u32> = choices.iter().map(|choice| choice.token).collect();
            let ended = tokens
                .last()
                .is_some_and(|token| tokenizer.ends().contains(token));
            let text = tokenizer.decode(&tokens)?;
            let gaps = choices.iter().map(|choice| choice.gap).collect();
            let greedy = CanonJson::of(&Greedy {
                prompt,
                tokens,
                ended,
                gaps,
                text,
            })?
            .to_string();
            outputs.insert(
                PartName::new("greedy.json")?,
                job.write(greedy.as_bytes(), CanonJson::default())?,
            );
        }
        outputs.insert(PartName::new("model.json")?, job.pass("model.json")?);
        Ok(outputs)
    }
}

/// Some logits twice, which are all of a small model's; or what a layer holds: of each token that
/// is run the stream and what becomes of it, of one text the scores of the heads that share a key.
fn demand(params: &Params, model: &Manifest) -> Result<Demand> {
    let spec: DecoderSpec = model.part("model.json")?.facts.read()?;
    let [tokens, vocab, ffn, hidden] =
        [params.tokens, spec.vocab, spec.ffn, spec.hidden].map(u64::from);
    let group = u64::from(spec.heads.div_ceil(spec.kv_heads.max(1)));
    let run = (params.windows as u64 * tokens)
        .min(TOGETHER as u64)
        .max(tokens);
    let logits = 2 * (tokens * vocab).min((LOGITS as u64).max(vocab));
    let layer = run * (2 * ffn + 8 * hidden) + tokens * tokens * group;
    let memory_bytes = logits
        .max(layer)
        .saturating_mul(4)
        .saturating_add(OWN_BYTES);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    Ok(Demand {
        memory_bytes,
        threads,
        isolation: Isolation::Process,
    })
}

fn write_f32(sink: &mut impl Write, values: &[f32]) -> Result<()> {
    const CHUNK: usize = 1 << 16;
    for chunk in values.chunks(CHUNK) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        sink.write_all(&bytes)
            .context(Code::Io, || "write logits".into())?;
    }
    Ok(())
}

/// The GGUF's tensors, exactly dequantized.
struct FileWeights<'a>(BTreeMap<&'a str, Stored>);

/// A tensor as it lies in the file.
struct Stored {
    blob: Blob,
    ggml: &'static GgmlType,
    columns: u64,
}

impl<'a> FileWeights<'a> {
    fn new(job: &Job<'a>) -> Result<Self> {
        let tensors = job
            .inputs()
            .filter_map(|(name, input)| Some((name.strip_prefix("tensors/")?, name, input)));
        let stored = tensors.map(|(name, input, ingredient)| {
            let facts: TensorFacts = ingredient.facts.read()?;
            let (blob, ggml) = (job.read(input)?, GgmlType::by_name(&facts.ggml_type)?);
            let values = facts
                .shape
                .iter()
                .try_fold(1u64, |product, extent| product.checked_mul(*extent));
            let columns = facts.shape.last().copied().unwrap_or(0);
            if values.and_then(|values| ggml.bytes(values)) != Some(blob.len() as u64)
                || ggml.bytes(columns).is_none()
            {
                let message = format!(
                    "`{name}` has {} bytes, which is no {} of shape {:?}",
                    blob.len(),
                    ggml.name,
                    facts.shape
                );
                return Err(Problem::new(Code::ReferenceTensor, message));
            }
            Ok((
                name,
                Stored {
                    blob,
                    ggml,
                    columns,
                },
            ))
        });
        Ok(FileWeights(stored.collect::<Result<_>>()?))
    }
}

impl Weights for FileWeights<'_> {
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let missing = || {
            Problem::new(
                Code::ReferenceTensor,
                format!("`{name}` has no rows {rows:?}"),
            )
        };
        let Stored {
            blob,
            ggml,
            columns,
        } = self.0.get(name).ok_or_else(missing)?;
        let values = |rows: usize| (rows as u64).checked_mul(*columns).ok_or_else(missing);
        let at = |row: usize| values(row).and_then(|values| ggml.bytes(values).ok_or_else(missing));
        let (start, end) = (at(rows.start)?, at(rows.end)?);
        let blocks = blob.slice(start..end).ok_or_else(missing)?;
        let mut out = vec![0.0; values(rows.len())? as usize];
        decode_far(ggml, ggml.format, &blocks, &mut out);
        blocks.leave(0..blocks.len());
        Ok(out)
    }
}
