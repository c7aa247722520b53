//! The memory that ONNX Runtime needs to run a graph layer by layer.
//! `tests/it/memory_of_models.rs` compares these estimates with measured peaks.

use std::collections::BTreeMap;

use super::layers::SLICE_ELEMENTS;
use crate::action::{Demand, Isolation, Manifest, Part};
use crate::artifact::context::{CPU, binaries};
use crate::base::Result;
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::shards::OuterModule;
use crate::model::decoder::tensors::{Role, by_name, role_of_blob};
use crate::model::facts::{ContextFacts, GraphFacts, in_layer};
use crate::model::weight::{WeightFacts, blob_owner};

/// The program itself, the runtime's own memory, buffers, and what an allocator keeps.
const OWN_BYTES: u64 = 128 << 20;

/// A layer, or some rows of a large matrix.
#[derive(Default)]
struct Layer {
    /// Weights in f32 and as they are stored, and the caller's statistics of them.
    bytes: u64,
    /// Elements of its largest matrix.
    largest: u64,
}

impl Layer {
    /// The largest matrix counts twice more: while codes become values, and while these are
    /// transposed.
    fn peak_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.largest.saturating_mul(8))
    }
}

/// What an order over `graph` needs, if a matrix of more than `most` elements runs in slices of
/// that size: the weights of its largest layer as stored and in f32; `extra_bytes` for each of
/// them; the values of a layer, the caches and the logits of one window. Only some rows of the
/// embedding are needed.
pub fn of_layers(
    graph: &Manifest,
    most: u64,
    extra_bytes: impl Fn(&str, &WeightFacts) -> u64,
) -> Result<Demand> {
    let model: DecoderSpec = graph.part("model.json")?.facts.read()?;
    let weights = largest_layer_bytes(&model, graph.under("weights"), most, extra_bytes)?;
    let values = window_bytes(&model, &graph.part("prefill.onnx")?.facts.read()?);
    let memory_bytes = weights.saturating_add(values).saturating_add(OWN_BYTES);
    Ok(Demand {
        memory_bytes,
        threads: 1,
        isolation: Isolation::Process,
    })
}

/// The bytes that running the graphs in the folder `cpu` of `context` needs.
pub(super) fn on_cpu_bytes(context: &Manifest) -> Result<u64> {
    let model: DecoderSpec = context.part("model.json")?.facts.read()?;
    let folder = format!("{CPU}/weights");
    let weights = largest_layer_bytes(&model, context.under(&folder), SLICE_ELEMENTS, |_, _| 0)?;
    let mut values = 0;
    for (_, binary) in binaries(context)? {
        for graph in binary.facts.read::<ContextFacts>()?.graphs.values() {
            values = window_bytes(&model, graph).max(values);
        }
    }
    Ok(weights.saturating_add(values).saturating_add(OWN_BYTES))
}

/// Peak bytes of the largest layer among those that `weights` belong to.
fn largest_layer_bytes<'a>(
    model: &DecoderSpec,
    weights: impl Iterator<Item = (&'a str, &'a Part)>,
    most: u64,
    extra_bytes: impl Fn(&str, &WeightFacts) -> u64,
) -> Result<u64> {
    let tensors = by_name(model);
    let mut layers: BTreeMap<&str, Layer> = BTreeMap::new();
    for (name, part) in weights {
        let tensor = blob_owner(name);
        let role = role_of_blob(&tensors, name);
        if role == Some(Role::Embedding) && !OuterModule::Head.reads(Role::Embedding, model) {
            continue;
        }
        let key = match in_layer(tensor) {
            Some((number, _)) => number,
            None => tensor,
        };
        let layer = layers.entry(key).or_default();
        layer.bytes = layer.bytes.saturating_add(part.content.digest.size_bytes);
        let facts: WeightFacts = part.facts.read()?;
        if facts.is_main() {
            let elements = facts.values().min(most);
            let bytes = elements
                .saturating_mul(4)
                .saturating_add(extra_bytes(tensor, &facts));
            layer.bytes = layer.bytes.saturating_add(bytes);
            layer.largest = layer.largest.max(elements);
        }
    }
    Ok(layers.values().map(Layer::peak_bytes).max().unwrap_or(0))
}

/// Bytes of the values of one window: the logits three times, the scores of a layer in four forms,
/// eight values as wide as its feed-forward layer, and the caches of all layers.
fn window_bytes(model: &DecoderSpec, graph: &GraphFacts) -> u64 {
    let GraphFacts {
        tokens, context, ..
    } = *graph;
    let [vocab, heads, ffn, blocks] =
        [model.vocab, model.heads, model.ffn, model.block_count()].map(u64::from);
    let [kv_heads, head_dim, tokens, context] =
        [model.kv_heads, model.head_dim, tokens, context].map(u64::from);
    let logits = f32_bytes(&[tokens, 3, vocab]);
    let scores = f32_bytes(&[tokens, 4, heads, context]);
    let ffn = f32_bytes(&[tokens, 8, ffn]);
    f32_bytes(&[2, blocks, kv_heads, head_dim, context])
        .saturating_add(logits)
        .saturating_add(scores)
        .saturating_add(ffn)
}

/// The bytes of an f32 array of this shape.
fn f32_bytes(shape: &[u64]) -> u64 {
    let mut bytes = 4u64;
    for extent in shape {
        bytes = bytes.saturating_mul(*extent);
    }
    bytes
}
