//! `inspect`: a GGUF becomes a model of named tensors. No byte is copied: each tensor is a window into the file.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Blob, BlobSink, Content, Demand, InputSpec, Inputs, Job, Order, Outputs, Part, PartName, StageSpec, TypedStage,
    Window,
};
use crate::base::{CanonJson, Context, Hasher, Problem, Result};
use crate::model::arch::model_facts;
use crate::model::facts::ModelFacts;
use crate::model::gguf::{Gguf, Metadata, Scalars, Summary, TensorInfo, Under, quoted};

/// The stage.
pub struct Inspect;

/// It has no parameters.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

impl TypedStage for Inspect {
    type Params = NoParams;
    type Order = NoParams;

    const SPEC: StageSpec = StageSpec {
        kind: "inspect",
        version: 1,
        summary: "reads a GGUF: what the model is, and where its tensors lie",
        gives: "model",
        inputs: &[InputSpec { name: "gguf", accepts: &["file"], required: true, many: false }],
        params: &[],
        keyed: &[],
        reaches_outside: false,
    };

    fn expand(params: NoParams, inputs: &Inputs) -> Result<Vec<Order<NoParams>>> {
        let (_, part) = inputs.one("gguf")?.only()?;
        // Metadata stay in the mapped file; the lists of keys and tensors are a few megabytes at most.
        let demand = Demand { memory_bytes: 64 << 20, ..Demand::default() };
        Ok(vec![Order::new("", params).input("gguf", part).demand(demand)])
    }

    fn run(_: NoParams, job: &Job) -> Result<Outputs> {
        let content = job.input("gguf")?.content();
        let file = job.read("gguf")?;
        let gguf = Gguf::parse(&file)?;
        let model = model_facts(&gguf)?;
        let facts = CanonJson::of(&model)?;
        let mut outputs = Outputs::new();
        outputs.insert(PartName::new("model.json")?, write_json(job, &ModelJson::new(&model, &gguf.metadata), facts)?);
        let tokenizer = Under(&gguf.metadata, "tokenizer.");
        outputs.insert(PartName::new("tokenizer.json")?, write_json(job, &tokenizer, CanonJson::default())?);
        let summary = Summary { gguf: &gguf, model: Some(&model) }.to_string();
        outputs.insert(PartName::new("summary.txt")?, job.write(summary.as_bytes(), CanonJson::default())?);
        outputs.par_extend(tensors(job, &gguf, &file, content)?);
        Ok(outputs)
    }
}

/// `model.json`: the facts, and the file's own words.
#[derive(Serialize)]
struct ModelJson<'a> {
    #[serde(flatten)]
    model: &'a ModelFacts,
    metadata: Scalars<'a>,
}

impl<'a> ModelJson<'a> {
    fn new(model: &'a ModelFacts, metadata: &'a Metadata<'a>) -> Self {
        ModelJson { model, metadata: Scalars(metadata) }
    }
}

/// Streams `value`, whose strings may be as long as the file.
fn write_json(job: &Job, value: &impl Serialize, facts: CanonJson) -> Result<Part> {
    let mut sink = std::io::BufWriter::new(job.create()?);
    serde_json::to_writer(&mut sink, value).context("kiln::inspect::json", || "write metadata as JSON".into())?;
    let sink: Box<dyn BlobSink> =
        sink.into_inner().map_err(|error| Problem::new("kiln::io", format!("failed to write a blob: {error}")))?;
    Ok(Part { content: sink.finish()?, facts })
}

/// Bytes of a tensor that are hashed at a time.
const PIECE_BYTES: usize = 4 << 20;

/// A window for each tensor, hashed on all threads. What was hashed does not stay in memory.
fn tensors(job: &Job, gguf: &Gguf, file: &Blob, content: Content) -> Result<Vec<(PartName, Part)>> {
    let total = gguf.tensors.iter().map(|tensor| tensor.range.end - tensor.range.start).sum();
    let done = AtomicU64::new(0);
    let window = |tensor: &TensorInfo| {
        job.check_cancelled()?;
        let name = PartName::new(format!("tensors/{}", tensor.name))
            .map_err(|problem| problem.within(format!("tensor {} cannot become a part", quoted(tensor.name))))?;
        let mut hasher = Hasher::default();
        for (index, piece) in gguf.data(tensor).chunks(PIECE_BYTES).enumerate() {
            hasher.update_with_all_threads(piece);
            let start = tensor.range.start as usize + index * PIECE_BYTES;
            file.leave(start..start + piece.len());
        }
        let digest = hasher.finish();
        let inside = content.window.map_or(0, |window| window.offset);
        let window = Some(Window { blob: content.blob(), offset: inside + tensor.range.start });
        job.progress(done.fetch_add(digest.size_bytes, Ordering::Relaxed) + digest.size_bytes, total, "B");
        Ok((name, Part { content: Content { digest, window }, facts: CanonJson::of(&tensor.facts())? }))
    };
    gguf.tensors.par_iter().map(window).collect()
}
