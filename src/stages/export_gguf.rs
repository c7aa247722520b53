//! `export-gguf`: writes a requantized model as a GGUF, so that llama.cpp can run it.
//!
//! A tensor of scheme `native` gets the blocks of the source, bit for bit. A GGUF has no block type
//! for the other schemes: their values are dequantized and written as plain numbers. Names, order
//! and metadata are the source's; `general.file_type` is the type of most weights.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};

use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    BlobSink, Demand, InputSpec, Inputs, Job, Manifest, Order, Outputs, Part, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::model::{METADATA, MODEL};
use crate::artifact::weight::{self, Weight};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::{StoredTensor, TensorSpec, stored};
use crate::model::facts::MetadataFacts;
use crate::model::gguf::{Entry, Gguf, Header, Value};
use crate::model::quant::{GgmlType, TensorFacts, write_numbers};
use crate::model::weight::{Element, WeightEncoding, WeightFacts};

/// The stage.
pub struct ExportGguf;

/// The parameters.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Number type of weights that are stored as codes but not in the source's own blocks. `f32`
    /// holds every value, `f16` rounds.
    #[serde(rename = "type", default)]
    to: Number,
}

/// A kind of plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Number {
    #[default]
    F32,
    F16,
}

/// Bytes that are written at a time.
const CHUNK_BYTES: usize = 1 << 20;

impl TypedStage for ExportGguf {
    type Params = Params;
    type Order = Params;

    const SPEC: StageSpec = StageSpec {
        kind: "export-gguf",
        version: 1,
        summary: "a requantized model as a GGUF, for llama.cpp",
        output: "file",
        inputs: &[
            InputSpec {
                name: "model",
                meaning: "The model that the weights were made from.",
                accepts: &["model"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "weights",
                meaning: "The weights to write.",
                accepts: &["weights"],
                required: true,
                many: false,
            },
        ],
        params: &["type"],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let (model, weights) = (inputs.one("model")?, inputs.one("weights")?);
        let metadata = model.part(METADATA)?;
        let facts: MetadataFacts = metadata.facts.read()?;
        let mut widest = 0;
        let mut order = Order::new("", params)
            .input(METADATA, metadata)
            .input(MODEL, model.part(MODEL)?);
        for stored in in_file(&facts.tensors, &model.part(MODEL)?.facts)? {
            let mut are_native = true;
            for TensorSpec { name, .. } in &stored.tensors {
                let tensor: TensorFacts = source(model, name)?.facts.read()?;
                let (_, weight) = weight::main_part(weights, name)?;
                if weight.shape != tensor.shape {
                    let what = format!(
                        "tensor `{name}` is {:?} in the model, {:?} in the weights",
                        tensor.shape, weight.shape
                    );
                    return Err(Problem::new(Code::WeightsShape, what)
                        .help("give the weights of this model"));
                }
                are_native &= is_native(&weight, &tensor);
            }
            for TensorSpec { name, shape, .. } in &stored.tensors {
                if are_native {
                    order = order.input(format!("source/{name}"), source(model, name)?);
                    continue;
                }
                widest = widest.max(shape.last().copied().unwrap_or(0));
                for (blob, part) in weights.under(name) {
                    order = order.input(format!("weights/{name}/{blob}"), part);
                }
            }
        }
        // A row as read and as written, a chunk of the output, and the list of tensors. The rest is
        // mapped.
        let memory_bytes = widest
            .saturating_mul(16)
            .saturating_add(CHUNK_BYTES as u64 * 2);
        let memory_bytes = memory_bytes.saturating_add(Demand::default().memory_bytes);
        Ok(vec![order.demand(Demand {
            memory_bytes,
            ..Demand::default()
        })])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let metadata = job.read(METADATA)?;
        let gguf = Gguf::parse(&metadata)?;
        let names: MetadataFacts = job.input(METADATA)?.facts.read()?;
        let mut sources = vec![];
        for stored in in_file(&names.tensors, &job.input(MODEL)?.facts)? {
            sources.push(Source::read(job, stored, params.to)?);
        }

        let mut header = Header::new(&gguf.metadata, gguf.alignment);
        for (name, source) in names.tensors.iter().zip(&sources) {
            header.tensors.push(source.entry(name));
        }
        set_file_type(&mut header, &sources);
        let mut writer = FileWriter {
            job,
            sink: job.create()?,
            done: 0,
            total: 0,
        };
        for entry in &header.tensors {
            writer.total = writer.total.saturating_add(entry.bytes()?);
        }
        let mut buffer = BufWriter::with_capacity(1 << 16, &mut writer.sink);
        header.write(&mut buffer)?;
        buffer.flush().context(Code::Io, || "write a blob".into())?;
        drop(buffer);
        for (entry, source) in header.tensors.iter().zip(&sources) {
            for tensor in &source.stored.tensors {
                let name = &tensor.name;
                match source.weight {
                    None => job
                        .read(&format!("source/{name}"))?
                        .stream(CHUNK_BYTES, |chunk| writer.write(chunk))?,
                    Some(element) => {
                        let weight = Weight::read(job, &format!("weights/{name}"))?;
                        write_values(&mut writer, tensor, &weight, element)?;
                    }
                }
            }
            let zeros = vec![0; header.padding(entry.bytes()?) as usize];
            writer.write(&zeros)?;
        }
        let content = writer.sink.finish()?;
        Ok([(
            PartName::new("model.gguf")?,
            Part {
                content,
                facts: CanonJson::default(),
            },
        )]
        .into())
    }
}

/// Whether a weight has the values of the source, so that the source's blocks can be written.
fn is_native(weight: &WeightFacts, tensor: &TensorFacts) -> bool {
    let Some(error) = &weight.error else {
        return false;
    };
    error.exact && error.scheme == "native" && error.source == tensor.ggml_type
}

/// The tensors `names` of a file. `model` are the facts of the model in it.
fn in_file(names: &[String], model: &CanonJson) -> Result<Vec<StoredTensor>> {
    let spec: DecoderSpec = model.read()?;
    let mut by_name = BTreeMap::new();
    for stored in stored(&spec) {
        by_name.insert(stored.name.clone(), stored);
    }
    let mut all = vec![];
    for name in names {
        let Some(stored) = by_name.remove(name) else {
            let message = format!("`{name}` is no tensor of a `{}` model", spec.architecture);
            return Err(Problem::new(Code::ModelTensors, message));
        };
        all.push(stored);
    }
    Ok(all)
}

fn source<'a>(model: &'a Manifest, name: &str) -> Result<&'a Part> {
    model.part(&format!("tensors/{name}"))
}

/// Where the data of a tensor of the file come from: the source's blocks, or weights.
struct Source {
    stored: StoredTensor,
    shape: Vec<u64>,
    ggml: &'static GgmlType,
    /// The number type in which weights are written; `None` for the source's blocks.
    weight: Option<Element>,
}

impl Source {
    fn read(job: &Job, stored: StoredTensor, to: Number) -> Result<Self> {
        let shape = stored.shape();
        if let Ok(input) = job.input(&format!("source/{}", stored.tensors[0].name)) {
            let TensorFacts { ggml_type, .. } = input.facts.read()?;
            return Ok(Source {
                stored,
                shape,
                ggml: GgmlType::by_name(&ggml_type)?,
                weight: None,
            });
        }
        let mut elements = BTreeSet::new();
        for TensorSpec { name, .. } in &stored.tensors {
            let facts = weight::facts(job, &format!("weights/{name}"))?;
            elements.insert(match (facts.encoding, to) {
                (WeightEncoding::Plain { element }, _) => element,
                (_, Number::F16) => Element::F16,
                (_, Number::F32) => Element::F32,
            });
        }
        // Values of different types fit into the widest of them.
        let element = match elements.first() {
            Some(element) if elements.len() == 1 => *element,
            _ => Element::F32,
        };
        let ggml = match element {
            Element::F16 => "F16",
            Element::Bf16 => "BF16",
            _ => "F32",
        };
        Ok(Source {
            stored,
            shape,
            ggml: GgmlType::by_name(ggml)?,
            weight: Some(element),
        })
    }

    fn entry<'a>(&'a self, name: &'a str) -> Entry<'a> {
        Entry {
            name,
            shape: &self.shape,
            ggml: self.ggml,
        }
    }
}

/// Writes the file and reports the progress.
struct FileWriter<'a> {
    job: &'a Job<'a>,
    sink: Box<dyn BlobSink>,
    done: u64,
    total: u64,
}

impl FileWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.job.check_cancelled()?;
        self.sink
            .write_all(bytes)
            .context(Code::Io, || "write a blob".into())?;
        self.done += bytes.len() as u64;
        self.job
            .progress(self.done.min(self.total), self.total, "B");
        Ok(())
    }
}

/// Writes every value as `element`, which is F32, F16 or BF16. The rows of heads are permuted back
/// to the order of the source.
fn write_values(
    writer: &mut FileWriter,
    tensor: &TensorSpec,
    weight: &Weight,
    element: Element,
) -> Result<()> {
    let (name, heads) = (&tensor.name, tensor.interleaved_heads);
    // A vector (bias) is permuted too: each of its values belongs to a row.
    let is_vector = weight.rows == 1;
    let rows = if is_vector {
        weight.columns
    } else {
        weight.rows
    };
    let stored_row = |row: usize| match heads {
        Some(heads) => half_split_row(row, rows / heads.max(1) as usize),
        None => row,
    };
    let mut values = vec![0.0; weight.columns];
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    for row in 0..weight.rows {
        if is_vector {
            let mut stored = vec![0.0; weight.columns];
            weight.row(0, &mut stored);
            for (index, value) in values.iter_mut().enumerate() {
                *value = stored[stored_row(index)];
            }
        } else {
            weight.row(stored_row(row), &mut values);
        }
        append_values(&mut bytes, &values, element).map_err(|problem| {
            problem.within(format!("failed to write row {row} of tensor `{name}`"))
        })?;
        if bytes.len() >= CHUNK_BYTES {
            writer.write(&bytes)?;
            bytes.clear();
            weight.evict();
        }
    }
    writer.write(&bytes)
}

/// The index in half-split order of the interleaved row `row`, for heads of `head_dim` rows.
fn half_split_row(row: usize, head_dim: usize) -> usize {
    let inside = row % head_dim.max(1);
    row - inside + inside % 2 * (head_dim / 2) + inside / 2
}

/// Appends `values` to `bytes` as `element`. Fails if a finite value becomes infinite.
fn append_values(bytes: &mut Vec<u8>, values: &[f32], element: Element) -> Result<()> {
    if element == Element::F16 {
        for value in values {
            if value.is_finite() && f16::from_f32(*value).is_infinite() {
                return Err(Problem::new(
                    Code::WeightsRange,
                    format!("{value:e} does not fit f16"),
                )
                .help("set type = \"f32\""));
            }
        }
    }
    let start = bytes.len();
    bytes.resize(start + values.len() * element.bits() as usize / 8, 0);
    write_numbers(element, values, &mut bytes[start..]);
    Ok(())
}

/// Sets `general.file_type` to the plain type that more than half of all values have. It stays as
/// it is if there is none, or if all data are the source's blocks.
fn set_file_type(header: &mut Header, sources: &[Source]) {
    if sources.iter().all(|source| source.weight.is_none()) {
        return;
    }
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut total = 0;
    for source in sources {
        let count: u64 = source.shape.iter().product();
        *counts.entry(source.ggml.name).or_default() += count;
        total += count;
    }
    // The numbers of `llama_ftype`.
    for (name, file_type) in [("F32", 0), ("F16", 1), ("BF16", 32)] {
        if counts.get(name).is_none_or(|count| *count <= total / 2) {
            continue;
        }
        for (key, value) in &mut header.pairs {
            if *key == "general.file_type" {
                *value = Value::U32(file_type);
            }
        }
    }
}
