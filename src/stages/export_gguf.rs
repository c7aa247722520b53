//! `export-gguf`: a requantized model as a GGUF, so that llama.cpp can try it.
//!
//! A tensor that `requant` took over as it is (`native`) has its own blocks again, bit for bit; a
//! file of nothing else has the data of its source. Of any other scheme a GGUF has no blocks: the
//! values are written that codes, scales and offsets stand for, as plain numbers. Names, order and
//! metadata are the source's; `general.file_type` says what most weights are.

use std::io::{BufWriter, Write};

use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    BlobSink, Demand, InputSpec, Inputs, Job, Order, Outputs, Part, PartName, StageSpec, TypedStage,
};
use crate::artifact::weight::{self, Weight};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::{DecoderSpec, tensors::by_name};
use crate::model::facts::{MetadataFacts, TensorFacts};
use crate::model::gguf::{Entry, Gguf, Header, Value};
use crate::model::quant::{GgmlType, write_numbers};
use crate::model::weight::{Element, ErrorFacts, WeightEncoding, WeightFacts};

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

const METADATA: &str = "metadata.gguf";
const MODEL: &str = "model.json";

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
        for name in &facts.tensors {
            let source = model.part(&format!("tensors/{name}"))?;
            let tensor: TensorFacts = source.facts.read()?;
            let (_, weight) = weight::main_part(weights, name)?;
            if weight.shape != tensor.shape {
                let what = format!(
                    "tensor `{name}` is {:?} in the model, {:?} in the weights",
                    tensor.shape, weight.shape
                );
                return Err(Problem::new(Code::WeightsShape, what)
                    .help("give the weights of this very model"));
            }
            if is_native(&weight, &tensor) {
                order = order.input(format!("source/{name}"), source);
                continue;
            }
            widest = widest.max(tensor.shape.last().copied().unwrap_or(0));
            for (blob, part) in weights.under(name) {
                order = order.input(format!("weights/{name}/{blob}"), part);
            }
        }
        // A row as it is read and as it is written, a chunk of it, the list of tensors; all else
        // stays mapped.
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
        let spec: DecoderSpec = job.input(MODEL)?.facts.read()?;
        let of_decoder = by_name(&spec);
        let names: MetadataFacts = job.input(METADATA)?.facts.read()?;
        let sources = names
            .tensors
            .iter()
            .map(|name| Source::of(job, name, params.to));
        let sources = sources.collect::<Result<Vec<Source>>>()?;

        let mut header = Header::new(&gguf.metadata, gguf.alignment);
        header.tensors = names
            .tensors
            .iter()
            .zip(&sources)
            .map(|(name, source)| source.entry(name))
            .collect();
        tell_file_type(&mut header, &sources);
        let mut out = Out {
            job,
            sink: job.create()?,
            done: 0,
            total: 0,
        };
        for entry in &header.tensors {
            out.total = out.total.saturating_add(entry.bytes()?);
        }
        let mut begin = BufWriter::with_capacity(1 << 16, &mut out.sink);
        header.write(&mut begin)?;
        begin.flush().context(Code::Io, || "write a blob".into())?;
        drop(begin);
        for (entry, source) in header.tensors.iter().zip(&sources) {
            match &source.weight {
                None => job
                    .read(&format!("source/{}", entry.name))?
                    .stream(CHUNK_BYTES, |piece| out.write(piece))?,
                Some(element) => {
                    let weight = Weight::read(job, &format!("weights/{}", entry.name))?;
                    let tensor = of_decoder.get(entry.name);
                    let heads = tensor.and_then(|tensor| tensor.interleaved_heads);
                    write_values(&mut out, entry.name, &weight, *element, heads)?;
                }
            }
            let zeros = vec![0; header.padding(entry.bytes()?) as usize];
            out.write(&zeros)?;
        }
        let content = out.sink.finish()?;
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

/// Whether a weight is the source's own, which then still has it in the blocks it came in.
fn is_native(weight: &WeightFacts, tensor: &TensorFacts) -> bool {
    let native = |error: &ErrorFacts| {
        error.exact && error.scheme == "native" && error.source == tensor.ggml_type
    };
    weight.error.as_ref().is_some_and(native)
}

/// Where the data of a tensor come from: its own blocks, or a weight.
struct Source {
    shape: Vec<u64>,
    ggml: &'static GgmlType,
    /// What the values of a weight are written as.
    weight: Option<Element>,
}

impl Source {
    fn of(job: &Job, name: &str, to: Number) -> Result<Self> {
        if let Ok(input) = job.input(&format!("source/{name}")) {
            let TensorFacts { shape, ggml_type } = input.facts.read()?;
            return Ok(Source {
                shape,
                ggml: GgmlType::by_name(&ggml_type)?,
                weight: None,
            });
        }
        let facts = weight::facts(job, &format!("weights/{name}"))?;
        let element = match (facts.encoding, to) {
            (WeightEncoding::Plain { element }, _) => element,
            (_, Number::F16) => Element::F16,
            (_, Number::F32) => Element::F32,
        };
        let ggml = match element {
            Element::F16 => "F16",
            Element::Bf16 => "BF16",
            _ => "F32",
        };
        Ok(Source {
            shape: facts.shape,
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

/// The file that is being written.
struct Out<'a> {
    job: &'a Job<'a>,
    sink: Box<dyn BlobSink>,
    done: u64,
    total: u64,
}

impl Out<'_> {
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

/// Every value as `element`, which is F32, F16 or BF16, rows in the order of the source.
fn write_values(
    out: &mut Out,
    name: &str,
    weight: &Weight,
    element: Element,
    heads: Option<u32>,
) -> Result<()> {
    // A vector is permuted too: each of its values belongs to a row.
    let rows = if weight.rows == 1 {
        weight.columns
    } else {
        weight.rows
    };
    let from = |row: usize| {
        heads.map_or(row, |heads| {
            half_split_row(row, rows / heads.max(1) as usize)
        })
    };
    let mut values = vec![0.0; weight.columns];
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    for row in 0..weight.rows {
        if weight.rows == 1 {
            let mut read = vec![0.0; weight.columns];
            weight.row(0, &mut read);
            values
                .iter_mut()
                .enumerate()
                .for_each(|(index, value)| *value = read[from(index)]);
        } else {
            weight.row(from(row), &mut values);
        }
        put(&mut bytes, &values, element).map_err(|problem| {
            problem.within(format!("failed to write row {row} of tensor `{name}`"))
        })?;
        if bytes.len() >= CHUNK_BYTES {
            out.write(&bytes)?;
            bytes.clear();
            weight.leave();
        }
    }
    out.write(&bytes)
}

/// Where the interleaved row `row` lies in half-split order, heads being `head_dim` rows.
fn half_split_row(row: usize, head_dim: usize) -> usize {
    let inside = row % head_dim.max(1);
    row - inside + inside % 2 * (head_dim / 2) + inside / 2
}

/// Appends `values` as `element`.
fn put(bytes: &mut Vec<u8>, values: &[f32], element: Element) -> Result<()> {
    let overflows = |value: &&f32| value.is_finite() && f16::from_f32(**value).is_infinite();
    if let Some(value) = values
        .iter()
        .find(overflows)
        .filter(|_| element == Element::F16)
    {
        return Err(
            Problem::new(Code::WeightsRange, format!("{value:e} does not fit f16"))
                .help("take type = \"f32\""),
        );
    }
    let start = bytes.len();
    bytes.resize(start + values.len() * element.bits() as usize / 8, 0);
    write_numbers(element, values, &mut bytes[start..]);
    Ok(())
}

/// `general.file_type`, once not everything is the source's own: that of the plain type which holds
/// most weights, if it does. A block type that still does keeps what the source said.
fn tell_file_type<'a>(header: &mut Header<'a>, sources: &[Source]) {
    let values = |name: &str| -> u64 {
        let own = sources.iter().filter(|source| source.ggml.name == name);
        own.map(|source| source.shape.iter().product::<u64>()).sum()
    };
    if sources.iter().all(|source| source.weight.is_none()) {
        return;
    }
    let all: u64 = sources
        .iter()
        .map(|source| source.shape.iter().product::<u64>())
        .sum();
    // The numbers of `llama_ftype`.
    let plain = [("F32", 0), ("F16", 1), ("BF16", 32)]
        .into_iter()
        .find(|(name, _)| values(name) > all / 2);
    let Some((_, file_type)) = plain else { return };
    if let Some((_, value)) = header
        .pairs
        .iter_mut()
        .find(|(key, _)| *key == "general.file_type")
    {
        *value = Value::U32(file_type);
    }
}
