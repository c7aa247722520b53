//! What ONNX Runtime takes to run a graph layer by layer; `tests/it/memory_of_models.rs` holds it
//! against what it takes.

use std::collections::BTreeMap;

use super::observe::SLICE_ELEMENTS;
use crate::action::{Demand, Isolation, Manifest, Part};
use crate::artifact::context::{CPU, binaries};
use crate::base::Result;
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::{Role, by_name, role_of_blob};
use crate::model::facts::{ContextFacts, GraphFacts, in_layer};
use crate::model::shards::End;
use crate::model::weight::{WeightFacts, blob_owner};

/// The program itself, the runtime's own, buffers, and what an allocator keeps.
const OWN_BYTES: u64 = 128 << 20;

/// A layer, or some rows of a large matrix.
#[derive(Default)]
struct Layer {
    /// Weights in f32 and as they are stored, and what the caller holds.
    bytes: u64,
    /// Elements of its largest matrix.
    largest: u64,
}

/// What an order over `graph` needs, if a matrix of more than `most` elements runs by so many at a
/// time: its largest layer as stored and in f32, the largest matrix of that twice more while codes
/// become values and these are transposed; the values of a layer, the caches and the logits of one
/// window; and for each weight of that layer what the caller holds. Of the embedding it needs some
/// rows.
pub fn of_layers(
    graph: &Manifest,
    most: u64,
    held: impl Fn(&str, &WeightFacts) -> u64,
) -> Result<Demand> {
    let model: DecoderSpec = graph.part("model.json")?.facts.read()?;
    let weights = largest(&model, graph.under("weights"), most, held)?;
    let values = of_values(&model, &graph.part("prefill.onnx")?.facts.read()?);
    let memory_bytes = weights.saturating_add(values).saturating_add(OWN_BYTES);
    Ok(Demand {
        memory_bytes,
        threads: 1,
        isolation: Isolation::Process,
    })
}

/// The same of what `context` leaves to the CPU.
pub fn of_ends(context: &Manifest) -> Result<u64> {
    let model: DecoderSpec = context.part("model.json")?.facts.read()?;
    let weights = largest(
        &model,
        context.under(&format!("{CPU}/weights")),
        SLICE_ELEMENTS,
        |_, _| 0,
    )?;
    let mut values = 0;
    for (_, binary) in binaries(context)? {
        for graph in binary.facts.read::<ContextFacts>()?.graphs.values() {
            values = of_values(&model, graph).max(values);
        }
    }
    Ok(weights.saturating_add(values).saturating_add(OWN_BYTES))
}

/// What the largest layer takes of those that `weights` belong to.
fn largest<'a>(
    model: &DecoderSpec,
    weights: impl Iterator<Item = (&'a str, &'a Part)>,
    most: u64,
    held: impl Fn(&str, &WeightFacts) -> u64,
) -> Result<u64> {
    let tensors = by_name(model);
    let mut layers: BTreeMap<&str, Layer> = BTreeMap::new();
    for (name, part) in weights {
        let tensor = blob_owner(name);
        let role = role_of_blob(&tensors, name);
        if role == Some(Role::Embedding) && !End::Head.reads(Role::Embedding, model) {
            continue;
        }
        let layer = layers
            .entry(in_layer(tensor).map_or(tensor, |(number, _)| number))
            .or_default();
        layer.bytes = layer.bytes.saturating_add(part.content.digest.size_bytes);
        let facts: WeightFacts = part.facts.read()?;
        if facts.is_main() {
            let elements = facts.values().min(most);
            let bytes = elements
                .saturating_mul(4)
                .saturating_add(held(tensor, &facts));
            layer.bytes = layer.bytes.saturating_add(bytes);
            layer.largest = layer.largest.max(elements);
        }
    }
    let bytes = |layer: &Layer| layer.bytes.saturating_add(layer.largest.saturating_mul(8));
    Ok(layers.values().map(bytes).max().unwrap_or(0))
}

/// The values of one window: logits three times, the scores of a layer in four forms, eight values
/// as wide as its feed-forward layer, and the caches of all layers.
fn of_values(model: &DecoderSpec, graph: &GraphFacts) -> u64 {
    let GraphFacts {
        tokens, context, ..
    } = *graph;
    let [vocab, heads, ffn, blocks] =
        [model.vocab, model.heads, model.ffn, model.block_count()].map(u64::from);
    let [kv_heads, head_dim, tokens, context] =
        [model.kv_heads, model.head_dim, tokens, context].map(u64::from);
    let product = |factors: &[u64]| {
        factors
            .iter()
            .fold(4u64, |product, factor| product.saturating_mul(*factor))
    };
    let of_window = [
        &[tokens, 3, vocab][..],
        &[tokens, 4, heads, context],
        &[tokens, 8, ffn],
    ]
    .map(product);
    let caches = product(&[2, blocks, kv_heads, head_dim, context]);
    of_window.into_iter().fold(caches, u64::saturating_add)
}
