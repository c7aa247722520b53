//! How a decoder is partitioned: into shards of whole layers, each a graph of its own, and into the
//! embedding and the head, which may run on the CPU.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spec::DecoderSpec;
use super::tensors::{Role, TensorSpec, tensors};
use crate::base::{Code, Problem, Result};

/// What computes a part of a model.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Processor {
    /// The NPU of the chip.
    #[default]
    Npu,
    /// The CPU of the host.
    Cpu,
}

/// What computes the embedding and the head of a decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    default,
    expecting = "a table with `embedding`, `head` or both"
)]
pub struct Place {
    /// The processor of the embedding, which maps token ids to the first hidden states.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Processor::default()))]
    pub embedding: Processor,
    /// The processor of the head, which maps the normalized residual stream to logits.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Processor::default()))]
    pub head: Processor,
}

/// A module before or after the layers of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterModule {
    /// Maps token ids to rows of the embedding.
    Embedding,
    /// Maps the normalized residual stream to logits.
    Head,
}

/// The embeddings of the tokens, if another graph looks them up.
pub const EMBEDDINGS: &str = "inputs_embeds";

/// Name of the embedding rows of the tokens in the graph of the whole model.
pub const ROWS: &str = "token_embd.rows";

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Place {
    /// The modules that the CPU computes.
    pub fn on_cpu(self) -> impl Iterator<Item = OuterModule> {
        let mut modules = vec![];
        if self.embedding == Processor::Cpu {
            modules.push(OuterModule::Embedding);
        }
        if self.head == Processor::Cpu {
            modules.push(OuterModule::Head);
        }
        modules.into_iter()
    }

    /// The placement of a model that consists of `shards`.
    pub fn of<'a>(shards: impl IntoIterator<Item = &'a Shard>) -> Self {
        let mut place = Place::default();
        for shard in shards {
            place.embedding = place.embedding.max(shard.place.embedding);
            place.head = place.head.max(shard.place.head);
        }
        place
    }
}

impl OuterModule {
    /// Name in plans.
    pub fn name(self) -> &'static str {
        match self {
            OuterModule::Embedding => "embedding",
            OuterModule::Head => "head",
        }
    }

    /// Name of the value between it and the layers if they are separate graphs. Genie requires the
    /// first of these names.
    pub fn value(self) -> &'static str {
        match self {
            OuterModule::Embedding => EMBEDDINGS,
            OuterModule::Head => "output_norm",
        }
    }

    /// Whether it uses the tensors of `spec` with this `role`.
    pub fn reads(self, role: Role, spec: &DecoderSpec) -> bool {
        match (self, role) {
            (OuterModule::Embedding, Role::Embedding) => true,
            (OuterModule::Embedding, Role::Head) => false,
            (OuterModule::Head, Role::Head) => true,
            (OuterModule::Head, Role::Embedding) => spec.head.tied,
            (_, Role::FinalNorm | Role::Layer(..) | Role::RotaryDivisors(_)) => false,
        }
    }

    /// File name of its graph `role` without the extension: `prefill-head`.
    pub fn graph_stem(self, role: &str) -> String {
        format!("{role}-{}", self.name())
    }
}

/// Consecutive layers of a decoder. The first shard also has the embedding and the last the head,
/// unless the CPU computes these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Number of the shard, from 1.
    pub part: u32,
    /// Number of shards.
    pub of: u32,
    /// The first layer.
    pub first: u32,
    /// The layer after the last.
    pub end: u32,
    /// What computes the embedding, if this is the first shard, and the head, if it is the last.
    #[serde(default, skip_serializing_if = "is_default")]
    pub place: Place,
}

/// Compile time of a weight of the embedding and of the head, relative to a weight of a layer: a
/// table is only copied, and 8-bit blocks take a little longer than 4-bit blocks. Measured at 1.5 B
/// weights: 15 s, 56 s, and 47 s for a layer's.
const EMBEDDING_COST: f64 = 0.3;
const HEAD_COST: f64 = 1.2;

/// The relative compile time of the matrices that the NPU computes.
struct CompileCosts {
    layers: u32,
    /// One layer; all layers have the same matrices.
    layer: f64,
    embedding: f64,
    head: f64,
}

impl CompileCosts {
    fn of(spec: &DecoderSpec, place: Place) -> Self {
        let all_tensors = tensors(spec);
        let layers = spec.block_count();
        let mut all_layers = 0.0;
        for tensor in &all_tensors {
            if tensor.is_matrix() && matches!(tensor.role, Role::Layer(..)) {
                all_layers += compile_cost(1.0, tensor);
            }
        }
        let table_cost = |module: OuterModule, cost| {
            for tensor in &all_tensors {
                if tensor.is_matrix() && module.reads(tensor.role, spec) {
                    return compile_cost(cost, tensor);
                }
            }
            0.0
        };
        CompileCosts {
            layers,
            layer: all_layers / f64::from(layers),
            embedding: match place.embedding {
                Processor::Npu => table_cost(OuterModule::Embedding, EMBEDDING_COST),
                Processor::Cpu => 0.0,
            },
            head: match place.head {
                Processor::Npu => table_cost(OuterModule::Head, HEAD_COST),
                Processor::Cpu => 0.0,
            },
        }
    }

    /// The number of layers in the first `part` of `count` shards.
    fn layers_before(&self, part: u32, count: u32) -> u32 {
        if part == count {
            return self.layers;
        }
        let total = f64::from(self.layers) * self.layer + self.embedding + self.head;
        let cost = total * f64::from(part) / f64::from(count) - self.embedding;
        let layers = (cost / self.layer).round() as u32;
        layers.clamp(part, self.layers - (count - part))
    }
}

/// The compile time of a matrix, of which a weight costs `weight_cost`.
fn compile_cost(weight_cost: f64, matrix: &TensorSpec) -> f64 {
    let mut cost = weight_cost;
    for extent in matrix.shape.iter().rev() {
        cost *= *extent as f64;
    }
    cost
}

impl Shard {
    /// The whole model as one shard.
    pub fn whole(spec: &DecoderSpec) -> Self {
        Shard {
            part: 1,
            of: 1,
            first: 0,
            end: spec.block_count(),
            place: Place::default(),
        }
    }

    /// `count` shards of `spec` that take about the same time to compile, without what the CPU
    /// computes. The boundaries depend on the shapes of the weights only, so another encoding of a
    /// layer does not move it to another shard. An error if there are more shards than layers.
    pub fn cut(spec: &DecoderSpec, count: u32, place: Place) -> Result<Vec<Self>> {
        let layers = spec.block_count();
        if !(1..=layers).contains(&count) {
            return Err(Problem::new(
                Code::ShardsCount,
                format!("{layers} layers make no {count} shards"),
            )
            .help(format!(
                "each shard has at least one layer: `shards` must be from 1 to {layers}"
            )));
        }
        let costs = CompileCosts::of(spec, place);
        let mut shards = Vec::with_capacity(count as usize);
        let mut first = 0;
        for part in 1..=count {
            let mut shard = Shard {
                part,
                of: count,
                first,
                end: costs.layers_before(part, count),
                place: Place::default(),
            };
            if part == 1 {
                shard.place.embedding = place.embedding;
            }
            if part == count {
                shard.place.head = place.head;
            }
            first = shard.end;
            shards.push(shard);
        }
        Ok(shards)
    }

    /// Whether it is the whole model, computed by the NPU.
    pub fn is_whole(&self) -> bool {
        self.of == 1 && self.place == Place::default()
    }

    /// Whether it is the last shard.
    pub fn is_last(&self) -> bool {
        self.part == self.of
    }

    /// Its layers, for people: `layers 0 to 3`.
    pub fn layers(&self) -> String {
        layer_range(self.first, self.end)
    }

    /// Whether it includes the embedding.
    pub fn has_embedding(&self) -> bool {
        self.part == 1 && self.place.embedding == Processor::Npu
    }

    /// Whether it includes the head.
    pub fn has_head(&self) -> bool {
        self.is_last() && self.place.head == Processor::Npu
    }

    /// Whether it uses the tensors of `spec` with this `role`.
    pub fn reads(&self, role: Role, spec: &DecoderSpec) -> bool {
        match role {
            Role::Layer(layer, _) => (self.first..self.end).contains(&layer),
            Role::FinalNorm => self.is_last(),
            Role::RotaryDivisors(_) => false,
            Role::Embedding | Role::Head => {
                self.has_embedding() && OuterModule::Embedding.reads(role, spec)
                    || self.has_head() && OuterModule::Head.reads(role, spec)
            }
        }
    }

    /// The folder of its artifacts: `1-of-4`; empty for the whole model.
    pub fn folder(&self) -> String {
        if self.is_whole() {
            String::new()
        } else {
            format!("{}-of-{}", self.part, self.of)
        }
    }

    /// File name of its graph `role` without the extension: `prefill-1-of-4`, or `prefill` for the
    /// whole model.
    pub fn graph_stem(&self, role: &str) -> String {
        if self.is_whole() {
            role.into()
        } else {
            format!("{role}-{}", self.folder())
        }
    }
}

/// The layers from `first` to the one before `end`, for people.
pub fn layer_range(first: u32, end: u32) -> String {
    if end - first == 1 {
        format!("layer {first}")
    } else {
        format!("layers {first} to {}", end - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decoder::tensors::by_name;

    fn model() -> DecoderSpec {
        let mut spec = DecoderSpec {
            hidden: 1536,
            ffn: 8960,
            heads: 12,
            kv_heads: 2,
            head_dim: 128,
            vocab: 151_936,
            ..DecoderSpec::tiny()
        };
        spec.layers[0].attention.qkv_bias = true;
        spec.layers = vec![spec.layers[0].clone(); 28];
        spec.head.tied = false;
        spec
    }

    #[test]
    fn shards_take_about_the_same_time_to_compile() {
        fn check(count: u32, place: Place, expected: &[u32]) {
            let shards = Shard::cut(&model(), count, place).unwrap();
            let layers: Vec<u32> = shards.iter().map(|shard| shard.end - shard.first).collect();
            assert_eq!(layers, expected);
        }
        let npu = Place::default();
        let cpu = Place {
            embedding: Processor::Cpu,
            head: Processor::Cpu,
        };
        // The embedding takes as long as one and a half layers, the head as six.
        check(1, npu, &[28]);
        check(2, npu, &[16, 12]);
        check(4, npu, &[7, 9, 9, 3]);
        check(28, npu, &[1; 28]);
        check(4, cpu, &[7, 7, 7, 7]);
        assert!(Shard::cut(&model(), 29, npu).is_err() && Shard::cut(&model(), 0, npu).is_err());
    }

    #[test]
    fn a_shard_reads_the_tensors_of_its_layers() {
        // The shards that read `name`, with embedding and head on the NPU and on the CPU.
        fn check(name: &str, tied: bool, on_npu: &[u32], on_cpu: &[u32]) {
            let mut spec = model();
            spec.head.tied = tied;
            let role = by_name(&spec)[name].role;
            for (processor, expected) in [(Processor::Npu, on_npu), (Processor::Cpu, on_cpu)] {
                let place = Place {
                    embedding: processor,
                    head: processor,
                };
                let shards = Shard::cut(&spec, 4, place).unwrap();
                assert_eq!(Place::of(&shards), place);
                let mut readers = vec![];
                for shard in shards {
                    if shard.reads(role, &spec) {
                        readers.push(shard.part);
                    }
                }
                assert_eq!(readers, expected, "{name}");
            }
        }
        check("blk.6.ffn_down.weight", false, &[1], &[1]);
        check("blk.7.attn_q.bias", false, &[2], &[2]);
        check("token_embd.weight", false, &[1], &[]);
        check("token_embd.weight", true, &[1, 4], &[]);
        check("output.weight", false, &[4], &[]);
        check("output_norm.weight", true, &[4], &[4]);
    }

    #[test]
    fn only_the_last_shard_records_a_head_on_the_cpu() {
        let model = model();
        let place = Place {
            head: Processor::Cpu,
            ..Place::default()
        };
        let shards = Shard::cut(&model, 2, place).unwrap();
        let text = |shard: &Shard| serde_json::to_string(shard).unwrap();
        assert_eq!(text(&shards[0]), r#"{"part":1,"of":2,"first":0,"end":13}"#);
        assert_eq!(
            text(&shards[1]),
            r#"{"part":2,"of":2,"first":13,"end":28,"place":{"head":"cpu"}}"#
        );
        let without_head = Shard::cut(&model, 1, place).unwrap()[0];
        assert_eq!(without_head.folder(), "1-of-1");
        assert_eq!(Shard::whole(&model).folder(), "");
    }
}
