//! `inspect`: reads a GGUF as a model of named tensors.
//!
//! Tensors are not copied: each is a window into its file. Only the tensors of a big-endian file
//! are copied, since all later stages expect little-endian data. Matrices that the file has fused
//! are windows of their own: rows are whole blocks.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    Blob, BlobSink, Content, Demand, InputSpec, Inputs, Job, Order, Outputs, Part, PartName,
    StageSpec, TypedStage, Window,
};
use crate::artifact::model::{METADATA, MODEL, TOKENIZER};
use crate::base::{CanonJson, Code, Context, Hasher, Problem, Result};
use crate::model::decoder::arch::model_facts;
use crate::model::decoder::tensors::stored;
use crate::model::decoder::{DecoderSpec, ModelFacts};
use crate::model::facts::MetadataFacts;
use crate::model::gguf::{
    ByteOrder, Gguf, Header, MAX_FILES, Metadata, Prefix, TensorInfo, can_swap, quoted, swap,
};
use crate::model::summary::{Scalars, Summary, TokenizerKeys};

/// The stage.
pub struct Inspect;

/// It has no parameters.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// Bytes of a big-endian tensor that are converted at a time.
const SWAP_BYTES: usize = 1 << 20;

impl TypedStage for Inspect {
    type Params = NoParams;
    type Order = NoParams;

    const SPEC: StageSpec = StageSpec {
        kind: "inspect",
        version: 4,
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
        let mut files: Vec<&Part> = vec![];
        for (_, manifest) in inputs.many("gguf") {
            files.extend(manifest.parts.values());
        }
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
        let mut order = Order::new("", params).demand(demand);
        if let [file] = files[..] {
            return Ok(vec![order.input("gguf", file)]);
        }
        for (index, file) in files.into_iter().enumerate() {
            order = order.input(format!("gguf-{:05}", index + 1), file);
        }
        Ok(vec![order])
    }

    fn run(_: NoParams, job: &Job) -> Result<Outputs> {
        // Sorted by name, which is the order of the files.
        let mut files = vec![];
        for (name, input) in job.inputs() {
            files.push((input.content(), job.read(name)?));
        }
        let mut prefixes = vec![];
        for (_, bytes) in &files {
            prefixes.push(Prefix::whole(bytes));
        }
        let gguf = Gguf::parse_files(&prefixes)?;
        let model = model_facts(&gguf)?;
        let (outputs, tensors) = rayon::join(
            || write_documents(job, &gguf, &model),
            || tensor_parts(job, &gguf, &model, &files),
        );
        let mut outputs = outputs?;
        outputs.extend(tensors?);
        Ok(outputs)
    }
}

/// Writes all outputs except the tensors.
fn write_documents(job: &Job, gguf: &Gguf, model: &ModelFacts) -> Result<Outputs> {
    let tokenizer = TokenizerKeys(&gguf.metadata);
    let kind = gguf.tokenizer();
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
            PartName::new(MODEL)?,
            write_json(
                job,
                &ModelJson::new(model, &gguf.metadata),
                CanonJson::of(model)?,
            )?,
        ),
        (
            PartName::new(TOKENIZER)?,
            write_json(job, &tokenizer, CanonJson::of(&kind)?)?,
        ),
        (
            PartName::new("summary.txt")?,
            job.write(summary.as_bytes(), CanonJson::default())?,
        ),
        (PartName::new(METADATA)?, metadata),
    ]
    .into())
}

/// `model.json`: the facts, and the metadata of the file.
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

type Sink = BufWriter<Box<dyn BlobSink>>;

/// Streams `value` as JSON, since its strings may be as long as the file.
fn write_json(job: &Job, value: &impl Serialize, facts: CanonJson) -> Result<Part> {
    write_part(job, facts, |sink| {
        serde_json::to_writer(sink, value)
            .context(Code::InspectJson, || "write metadata as JSON".into())
    })
}

/// Makes a part of what `write` writes to the sink.
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
const CHUNK_BYTES: usize = 4 << 20;

/// The part of each tensor, made on all threads. Tensors are streamed, so that they do not stay in
/// memory.
fn tensor_parts(
    job: &Job,
    gguf: &Gguf,
    model: &ModelFacts,
    files: &[(Content, Blob)],
) -> Result<Vec<(PartName, Part)>> {
    let spec = DecoderSpec::try_from(model.clone())?;
    let stored = stored(&spec);
    let (mut by_name, mut total) = (BTreeMap::new(), 0);
    for tensor in &gguf.tensors {
        by_name.insert(tensor.name, tensor);
        if gguf.order == ByteOrder::Big {
            can_swap(tensor.ggml).map_err(|problem| {
                problem.within(format!("failed to read {}", quoted(tensor.name)))
            })?;
        }
        total += tensor.range.end - tensor.range.start;
    }
    let mut tensors = vec![];
    for stored in &stored {
        let Some(whole) = by_name.get(stored.name.as_str()) else {
            continue;
        };
        let mut row = 0;
        for tensor in &stored.tensors {
            let end = row + tensor.shape[0];
            tensors.push(whole.some_rows(&tensor.name, row..end));
            row = end;
        }
    }
    let done = AtomicU64::new(0);
    let with_progress = |tensor| {
        let (name, part) = tensor_part(job, gguf.order, tensor, files)?;
        let size = part.content.digest.size_bytes;
        job.progress(done.fetch_add(size, Ordering::Relaxed) + size, total, "B");
        Ok((name, part))
    };
    tensors.par_iter().map(with_progress).collect()
}

fn tensor_part(
    job: &Job,
    order: ByteOrder,
    tensor: &TensorInfo,
    files: &[(Content, Blob)],
) -> Result<(PartName, Part)> {
    job.check_cancelled()?;
    let name = PartName::new(format!("tensors/{}", tensor.name)).map_err(|problem| {
        let message = format!("tensor {} cannot become a part", quoted(tensor.name));
        problem.within(message)
    })?;
    let outside = || {
        let what = format!("tensor {} is not in its file", quoted(tensor.name));
        Problem::new(Code::ModelGgufTensor, what)
    };
    let (file, bytes) = files.get(tensor.file).ok_or_else(outside)?;
    let bytes = bytes.slice(tensor.range.clone()).ok_or_else(outside)?;
    let content = match order {
        ByteOrder::Little => window_of_file(&bytes, tensor, file)?,
        ByteOrder::Big => swapped_copy(job, &bytes, tensor)?,
    };
    let facts = CanonJson::of(&tensor.facts())?;
    Ok((name, Part { content, facts }))
}

/// The tensor as a window into `file`, without a copy.
fn window_of_file(bytes: &Blob, tensor: &TensorInfo, file: &Content) -> Result<Content> {
    let mut hasher = Hasher::default();
    bytes.stream(CHUNK_BYTES, |chunk| {
        hasher.update_with_all_threads(chunk);
        Ok::<(), Problem>(())
    })?;
    // The file itself may be a window into a larger blob.
    let file_offset = match file.window {
        Some(window) => window.offset,
        None => 0,
    };
    let window = Some(Window {
        blob: file.blob(),
        offset: file_offset + tensor.range.start,
    });
    Ok(Content {
        digest: hasher.finish(),
        window,
    })
}

/// A little-endian copy of a big-endian tensor.
fn swapped_copy(job: &Job, bytes: &Blob, tensor: &TensorInfo) -> Result<Content> {
    let block_bytes = tensor.ggml.block_bytes as usize;
    let mut sink = job.create()?;
    let mut swapped = vec![];
    bytes.stream((SWAP_BYTES / block_bytes).max(1) * block_bytes, |blocks| {
        job.check_cancelled()?;
        swapped.clear();
        swapped.extend_from_slice(blocks);
        swap(tensor.ggml, &mut swapped)?;
        sink.write_all(&swapped)
            .context(Code::Io, || "write a blob".into())
    })?;
    sink.finish()
}
