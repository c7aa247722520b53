//! `rotate`: the same model with the residual stream rotated, so that outliers of single channels are
//! spread over all of them (`model/rotation.rs`).
//!
//! The weight of each RMSNorm is multiplied into the matrices that read it, and becomes ones. Then
//! matrices that read the residual stream are multiplied by Q from the right, those that write it by
//! the transpose of Q from the left. The head of a tied decoder gets a matrix of its own, because
//! the norm before it is not part of the embedding.

use std::collections::BTreeMap;
use std::io::Write;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::action::{
    Blob, BlobSink, Demand, InputSpec, Inputs, Job, Order, Outputs, Part, PartName, StageSpec,
    TypedStage,
};
use crate::artifact::model::{METADATA, MODEL, TOKENIZER};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::tensors::{LayerTensor, Role, TensorSpec, by_name, tensors};
use crate::model::decoder::{DecoderSpec, ModelFacts, Norms, not_supported};
use crate::model::facts::MetadataFacts;
use crate::model::quant::{BAND_VALUES, BlockTensor, RowOrder, TensorFacts, decode, write_numbers};
use crate::model::rotation::Rotation;
use crate::model::weight::Element;

/// The stage.
pub struct Rotate;

/// The stage's table.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Number type of the rotated matrices. `f16` rounds them, and takes half the space.
    #[serde(rename = "type", default)]
    to: Number,
}

/// A kind of plain number.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Number {
    #[default]
    F16,
    F32,
}

/// Bytes of a value of the largest piece in memory: decoded, and written.
const BYTES_PER_VALUE: u64 = 8;

impl TypedStage for Rotate {
    type Params = Params;
    type Order = Params;

    const SPEC: StageSpec = StageSpec {
        kind: "rotate",
        version: 1,
        summary: "the same model with outliers of the residual stream spread over all channels",
        output: "model",
        inputs: &[InputSpec {
            name: "model",
            meaning: "The model.",
            accepts: &["model"],
            required: true,
            many: false,
        }],
        params: &["type"],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let model = inputs.one("model")?;
        let spec: DecoderSpec = model.part(MODEL)?.facts.read()?;
        check(&spec)?;
        let mut order = Order::new("", params).demand(demand(&spec));
        for name in [MODEL, METADATA, TOKENIZER] {
            order = order.input(name, model.part(name)?);
        }
        for (name, part) in model.under("tensors") {
            order = order.input(format!("tensors/{name}"), part);
        }
        Ok(vec![order])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let spec: DecoderSpec = job.input(MODEL)?.facts.read()?;
        let rotated = rotated(&spec);
        let rotator = Rotator {
            job,
            spec: &spec,
            tensors: by_name(&spec),
            rotation: Rotation::new(spec.hidden)?,
            element: match params.to {
                Number::F16 => Element::F16,
                Number::F32 => Element::F32,
            },
        };
        let all = tensors(&rotated);
        let mut outputs = Outputs::new();
        for (index, tensor) in all.iter().enumerate() {
            job.check_cancelled()?;
            job.progress(index as u64, all.len() as u64, "tensors");
            let part = rotator
                .part(tensor)
                .map_err(|problem| problem.within(format!("failed to rotate `{}`", tensor.name)))?;
            outputs.insert(PartName::new(format!("tensors/{}", tensor.name))?, part);
        }
        let names = MetadataFacts {
            tensors: all.into_iter().map(|tensor| tensor.name).collect(),
        };
        let mut metadata = job.pass(METADATA)?;
        metadata.facts = CanonJson::of(&names)?;
        outputs.insert(PartName::new(METADATA)?, metadata);
        outputs.insert(PartName::new(MODEL)?, model_json(job, rotated)?);
        outputs.insert(PartName::new(TOKENIZER)?, job.pass(TOKENIZER)?);
        Ok(outputs)
    }
}

/// Refuses a model whose residual stream cannot be rotated.
fn check(spec: &DecoderSpec) -> Result<()> {
    for layer in &spec.layers {
        if layer.norms != Norms::Before {
            // The weights of a norm of what is added to the stream do not commute with a rotation.
            return Err(not_supported("a rotation", layer.norms));
        }
    }
    Rotation::new(spec.hidden)?;
    Ok(())
}

/// The decoder with the rotated weights.
fn rotated(spec: &DecoderSpec) -> DecoderSpec {
    let mut rotated = spec.clone();
    rotated.head.tied = false;
    for layer in &mut rotated.layers {
        layer.attention.fused_qkv = false;
        layer.fused_gate_up = false;
    }
    rotated
}

/// `model.json` with the facts of `rotated`.
fn model_json(job: &Job, rotated: DecoderSpec) -> Result<Part> {
    let facts = ModelFacts::from(rotated);
    let mut json: Value = serde_json::from_slice(&job.read(MODEL)?)
        .context(Code::InspectJson, || format!("read {MODEL}"))?;
    let changed = serde_json::to_value(&facts).context(Code::InspectJson, || {
        "write the facts of a model as JSON".into()
    })?;
    if let Value::Object(changed) = changed {
        for (key, value) in changed {
            json[key] = value;
        }
    }
    job.write(json.to_string().as_bytes(), CanonJson::of(&facts)?)
}

/// Memory for a matrix that writes the residual stream, or a band of another one.
fn demand(spec: &DecoderSpec) -> Demand {
    let [hidden, ffn, heads, width] =
        [spec.hidden, spec.ffn, spec.heads, spec.head_dim].map(u64::from);
    let columns = ffn.max(heads.saturating_mul(width));
    let values = hidden.saturating_mul(columns).max(BAND_VALUES as u64);
    let bytes = values.saturating_mul(BYTES_PER_VALUE);
    Demand {
        memory_bytes: bytes.saturating_add(Demand::default().memory_bytes),
        ..Demand::default()
    }
}

/// Rotates the tensors of a model.
struct Rotator<'a> {
    job: &'a Job<'a>,
    spec: &'a DecoderSpec,
    /// The tensors of the source.
    tensors: BTreeMap<String, TensorSpec>,
    rotation: Rotation,
    /// The type of the rotated matrices.
    element: Element,
}

/// A tensor of the source.
struct Source {
    facts: TensorFacts,
    bytes: Blob,
}

impl Source {
    fn tensor(&self) -> Result<BlockTensor<'_>> {
        BlockTensor::new(&self.facts, &self.bytes, RowOrder::Stored)
    }

    /// All values.
    fn values(&self) -> Result<Vec<f32>> {
        let tensor = self.tensor()?;
        let mut values = vec![0.0; tensor.len()];
        for band in tensor.bands() {
            decode(&tensor, &band, &mut values[band.first..][..band.values]);
        }
        Ok(values)
    }
}

impl Rotator<'_> {
    /// The part of `tensor` of the rotated decoder.
    fn part(&self, tensor: &TensorSpec) -> Result<Part> {
        let role = tensor.role;
        let Role::Layer(layer, kind) = role else {
            return match role {
                Role::Embedding => self.reader(&tensor.name, None),
                Role::Head if self.spec.head.tied => {
                    self.reader(&Role::Embedding.weight(), Some(Role::FinalNorm))
                }
                Role::Head => self.reader(&tensor.name, Some(Role::FinalNorm)),
                Role::FinalNorm => self.ones(tensor),
                Role::RotaryDivisors(_) | Role::Layer(..) => self.pass(tensor),
            };
        };
        let norm = |norm| Some(Role::Layer(layer, norm));
        match kind {
            LayerTensor::AttentionNorm | LayerTensor::FeedForwardNorm => self.ones(tensor),
            LayerTensor::Query | LayerTensor::Key | LayerTensor::Value if tensor.is_matrix() => {
                self.reader(&tensor.name, norm(LayerTensor::AttentionNorm))
            }
            LayerTensor::Gate | LayerTensor::Up => {
                self.reader(&tensor.name, norm(LayerTensor::FeedForwardNorm))
            }
            LayerTensor::AttentionOutput | LayerTensor::Down => self.writer(&tensor.name),
            // Biases, and norms inside of a branch.
            LayerTensor::Query
            | LayerTensor::Key
            | LayerTensor::Value
            | LayerTensor::QueryNorm
            | LayerTensor::KeyNorm
            | LayerTensor::AttentionPostNorm
            | LayerTensor::FeedForwardPostNorm => self.pass(tensor),
        }
    }

    /// Refused: a tensor that has not the shape of the decoder.
    fn source(&self, name: &str) -> Result<Source> {
        let input = format!("tensors/{name}");
        let facts: TensorFacts = self.job.input(&input)?.facts.read()?;
        let expected = self.tensors.get(name).map(|tensor| &tensor.shape);
        if expected != Some(&facts.shape) {
            let found = &facts.shape;
            let message = format!("`{name}` has shape {found:?}, expected {expected:?}");
            return Err(Problem::new(Code::ModelTensor, message));
        }
        let bytes = self.job.read(&input)?;
        Ok(Source { facts, bytes })
    }

    /// The tensor of the source, unchanged.
    fn pass(&self, tensor: &TensorSpec) -> Result<Part> {
        self.job.pass(&format!("tensors/{}", tensor.name))
    }

    /// The weight of a norm that is part of the matrices after it.
    fn ones(&self, tensor: &TensorSpec) -> Result<Part> {
        let count: u64 = tensor.shape.iter().product();
        let mut output = Output::new(self.job, Element::F32)?;
        output.write(&vec![1.0; count as usize])?;
        output.finish(tensor.shape.clone())
    }

    /// A matrix whose rows are multiplied with the residual stream, or are values of it; with the
    /// weight of the `norm` before it.
    fn reader(&self, name: &str, norm: Option<Role>) -> Result<Part> {
        let gamma = match norm {
            Some(norm) => Some(self.source(&norm.weight())?.values()?),
            None => None,
        };
        let source = self.source(name)?;
        let tensor = source.tensor()?;
        let columns = self.spec.hidden as usize;
        let mut output = Output::new(self.job, self.element)?;
        let mut values = vec![];
        for band in tensor.bands() {
            self.job.check_cancelled()?;
            values.resize(band.values, 0.0);
            decode(&tensor, &band, &mut values);
            values.par_chunks_exact_mut(columns).for_each(|row| {
                for (value, gamma) in row.iter_mut().zip(gamma.iter().flatten()) {
                    *value *= gamma;
                }
                self.rotation.apply(row, 1);
            });
            output.write(&values)?;
        }
        source.bytes.evict(0..source.bytes.len());
        output.finish(source.facts.shape.clone())
    }

    /// A matrix whose results are added to the residual stream.
    fn writer(&self, name: &str) -> Result<Part> {
        let source = self.source(name)?;
        let mut values = source.values()?;
        let inner = values.len() / self.spec.hidden.max(1) as usize;
        self.rotation.apply(&mut values, inner);
        let mut output = Output::new(self.job, self.element)?;
        for some in values.chunks(BAND_VALUES) {
            output.write(some)?;
        }
        source.bytes.evict(0..source.bytes.len());
        output.finish(source.facts.shape.clone())
    }
}

/// A tensor of plain numbers that is being written.
struct Output {
    sink: Box<dyn BlobSink>,
    element: Element,
    bytes: Vec<u8>,
}

impl Output {
    fn new(job: &Job, element: Element) -> Result<Self> {
        Ok(Output {
            sink: job.create()?,
            element,
            bytes: vec![],
        })
    }

    /// Appends `values`. Refused: one that is not finite, or that f16 cannot hold.
    fn write(&mut self, values: &[f32]) -> Result<()> {
        let largest = match self.element {
            Element::F16 => half::f16::MAX.to_f32(),
            _ => f32::MAX,
        };
        if let Some(value) = values
            .iter()
            .find(|value| value.is_nan() || value.abs() > largest)
        {
            let message = format!("{value:e} does not fit {}", self.element.name());
            return Err(Problem::new(Code::WeightsRange, message));
        }
        let bytes = values.len() * self.element.bits() as usize / 8;
        self.bytes.resize(bytes, 0);
        write_numbers(self.element, values, &mut self.bytes);
        self.sink
            .write_all(&self.bytes)
            .context(Code::Io, || "write a blob".into())
    }

    fn finish(self, shape: Vec<u64>) -> Result<Part> {
        let ggml_type = match self.element {
            Element::F16 => "F16",
            _ => "F32",
        };
        let facts = TensorFacts {
            shape,
            ggml_type: ggml_type.into(),
        };
        Ok(Part {
            content: self.sink.finish()?,
            facts: CanonJson::of(&facts)?,
        })
    }
}
