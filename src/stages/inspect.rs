//! `inspect`: a GGUF becomes a model of named tensors. No byte is copied: each tensor is a window
//! into its file. Only those of a big-endian file are written anew, little-endian as everything
//! after this stage is.

use std::io::{BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Blob, BlobSink, Content, Demand, InputSpec, Inputs, Job, Order, Outputs, Part, PartName,
    StageSpec, TypedStage, Window,
};
use crate::base::{CanonJson, Code, Context, Hasher, Problem, Result};
use crate::model::decoder::arch::model_facts;
use crate::model::facts::{MetadataFacts, ModelFacts};
use crate::model::gguf::{
    ByteOrder, Gguf, Header, MAX_FILES, Metadata, Prefix, Scalars, Summary, TensorInfo, Under,
    can_swap, quoted, swap,
};

/// The stage.
pub struct Inspect;

/// It has no parameters.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// Bytes of a big-endian tensor that are turned round at a time.
const SWAP_BYTES: usize = 1 << 20;

impl TypedStage for Inspect {
    type Params = NoParams;
    type Order = NoParams;

    const SPEC: StageSpec = StageSpec {
        kind: "inspect",
        version: 3,
        summary: "a GGUF as named tensors, and what its metadata say of the model",
        output: "model",
        inputs: &[InputSpec {
            name: "gguf",
            meaning: "A GGUF; of a split model the list of all its files, in order.",
            accepts: &["file"],
            required: true,
            many: true,
        }],
        params: &[],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn expand(params: NoParams, inputs: &Inputs) -> Result<Vec<Order<NoParams>>> {
        let files: Vec<&Part> = inputs
            .many("gguf")
            .iter()
            .flat_map(|(_, manifest)| manifest.parts.values())
            .collect();
        if files.is_empty() || files.len() > MAX_FILES {
            let what = format!(
                "a model of {} files; expected 1 to {MAX_FILES}",
                files.len()
            );
            return Err(Problem::new(Code::PartCount, what));
        }
        // Metadata stay in the mapped file; the lists of keys and tensors are a few megabytes at
        // most.
        let demand = Demand {
            memory_bytes: 64 << 20,
            ..Demand::default()
        };
        let order = Order::new("", params).demand(demand);
        let name = |index: usize| {
            if files.len() == 1 {
                "gguf".into()
            } else {
                format!("gguf-{:05}", index + 1)
            }
        };
        Ok(vec![
            files
                .iter()
                .enumerate()
                .fold(order, |order, (index, part)| order.input(name(index), part)),
        ])
    }

    fn run(_: NoParams, job: &Job) -> Result<Outputs> {
        // By name, which is the order of the files.
        let files = job
            .inputs()
            .map(|(name, input)| Ok((input.content(), job.read(name)?)));
        let files = files.collect::<Result<Vec<(Content, Blob)>>>()?;
        let prefixes: Vec<Prefix> = files
            .iter()
            .map(|(_, bytes)| Prefix::whole(bytes))
            .collect();
        let gguf = Gguf::parse_files(&prefixes)?;
        let model = model_facts(&gguf)?;
        let (outputs, tensors) = rayon::join(
            || documents(job, &gguf, &model),
            || tensors(job, &gguf, &files),
        );
        let mut outputs = outputs?;
        outputs.extend(tensors?);
        Ok(outputs)
    }
}

/// All but the tensors.
fn documents(job: &Job, gguf: &Gguf, model: &ModelFacts) -> Result<Outputs> {
    let tokenizer = Under(&gguf.metadata, "tokenizer.");
    let summary = Summary {
        gguf,
        model: Some(model),
    }
    .to_string();
    let names = MetadataFacts {
        tensors: gguf
            .tensors
            .iter()
            .map(|tensor| tensor.name.into())
            .collect(),
    };
    let metadata = Header::new(&gguf.metadata, gguf.alignment);
    let metadata = write_part(job, CanonJson::of(&names)?, |sink| metadata.write(sink))?;
    Ok([
        (
            PartName::new("model.json")?,
            write_json(
                job,
                &ModelJson::new(model, &gguf.metadata),
                CanonJson::of(model)?,
            )?,
        ),
        (
            PartName::new("tokenizer.json")?,
            write_json(job, &tokenizer, CanonJson::default())?,
        ),
        (
            PartName::new("summary.txt")?,
            job.write(summary.as_bytes(), CanonJson::default())?,
        ),
        (PartName::new("metadata.gguf")?, metadata),
    ]
    .into())
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
        ModelJson {
            model,
            metadata: Scalars(metadata),
        }
    }
}

/// What streams a blob.
type Sink = BufWriter<Box<dyn BlobSink>>;

/// `value`, whose strings may be as long as the file.
fn write_json(job: &Job, value: &impl Serialize, facts: CanonJson) -> Result<Part> {
    write_part(job, facts, |sink| {
        serde_json::to_writer(sink, value)
            .context(Code::InspectJson, || "write metadata as JSON".into())
    })
}

/// Streams what `write` gives.
fn write_part(
    job: &Job,
    facts: CanonJson,
    write: impl FnOnce(&mut Sink) -> Result<()>,
) -> Result<Part> {
    let mut sink = BufWriter::with_capacity(1 << 16, job.create()?);
    write(&mut sink)?;
    let sink: Box<dyn BlobSink> = sink
        .into_inner()
        .map_err(|error| Problem::new(Code::Io, format!("failed to write a blob: {error}")))?;
    Ok(Part {
        content: sink.finish()?,
        facts,
    })
}

/// Bytes of a tensor that are hashed at a time.
const PIECE_BYTES: usize = 4 << 20;

/// The content of each tensor, on all threads. What was read does not stay in memory.
fn tensors(job: &Job, gguf: &Gguf, files: &[(Content, Blob)]) -> Result<Vec<(PartName, Part)>> {
    if gguf.order == ByteOrder::Big {
        let named = |tensor: &TensorInfo| {
            can_swap(tensor.ggml).map_err(|problem| {
                problem.within(format!("failed to read {}", quoted(tensor.name)))
            })
        };
        gguf.tensors.iter().try_for_each(named)?;
    }
    let total = gguf
        .tensors
        .iter()
        .map(|tensor| tensor.range.end - tensor.range.start)
        .sum();
    let done = AtomicU64::new(0);
    let part = |tensor: &TensorInfo| {
        job.check_cancelled()?;
        let name = PartName::new(format!("tensors/{}", tensor.name)).map_err(|problem| {
            problem.within(format!(
                "tensor {} cannot become a part",
                quoted(tensor.name)
            ))
        })?;
        let whole = files.get(tensor.file);
        let bytes = whole.and_then(|(_, file)| file.slice(tensor.range.clone()));
        let (Some((whole, _)), Some(bytes)) = (whole, bytes) else {
            let what = format!("tensor {} does not lie in its file", quoted(tensor.name));
            return Err(Problem::new(Code::ModelGgufTensor, what));
        };
        let content = match gguf.order {
            ByteOrder::Little => window(&bytes, tensor, whole)?,
            ByteOrder::Big => swapped(job, &bytes, tensor)?,
        };
        let size = content.digest.size_bytes;
        job.progress(done.fetch_add(size, Ordering::Relaxed) + size, total, "B");
        Ok((
            name,
            Part {
                content,
                facts: CanonJson::of(&tensor.facts())?,
            },
        ))
    };
    gguf.tensors.par_iter().map(part).collect()
}

/// The bytes where they lie.
fn window(bytes: &Blob, tensor: &TensorInfo, whole: &Content) -> Result<Content> {
    let mut hasher = Hasher::default();
    bytes.stream(PIECE_BYTES, |piece| {
        hasher.update_with_all_threads(piece);
        Ok::<(), Problem>(())
    })?;
    let inside = whole.window.map_or(0, |window| window.offset);
    let window = Some(Window {
        blob: whole.blob(),
        offset: inside + tensor.range.start,
    });
    Ok(Content {
        digest: hasher.finish(),
        window,
    })
}

/// The bytes of a big-endian file, turned round into a blob.
fn swapped(job: &Job, bytes: &Blob, tensor: &TensorInfo) -> Result<Content> {
    let block_bytes = tensor.ggml.block_bytes as usize;
    let mut sink = job.create()?;
    let mut turned = vec![];
    bytes.stream((SWAP_BYTES / block_bytes).max(1) * block_bytes, |blocks| {
        job.check_cancelled()?;
        turned.clear();
        turned.extend_from_slice(blocks);
        swap(tensor.ggml, &mut turned)?;
        sink.write_all(&turned)
            .context(Code::Io, || "write a blob".into())
    })?;
    sink.finish()
}
