//! Where a decoder is cut: into shards of whole layers, each a graph of its own, and ends that may
//! run on the CPU.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::decoder::tensors::{Role, TensorSpec, tensors};
use super::decoder::{DecoderSpec, inputs};
use crate::base::{Code, Problem, Result};

/// What computes a piece of a model.
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

/// What computes the ends of a decoder.
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

/// An end of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Token ids in, their rows out.
    Embedding,
    /// The normalized residual stream in, logits out.
    Head,
}

/// The rows of the tokens, as the whole graph calls them.
pub const ROWS: &str = "token_embd.rows";

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Place {
    /// The ends that are the CPU's.
    pub fn on_cpu(self) -> impl Iterator<Item = End> {
        let ends = [(self.embedding, End::Embedding), (self.head, End::Head)];
        ends.into_iter()
            .filter_map(|(processor, end)| (processor == Processor::Cpu).then_some(end))
    }

    /// That of the model that `shards` make up.
    pub fn of<'a>(shards: impl IntoIterator<Item = &'a Shard>) -> Self {
        shards
            .into_iter()
            .fold(Place::default(), |all, shard| Place {
                embedding: all.embedding.max(shard.place.embedding),
                head: all.head.max(shard.place.head),
            })
    }
}

impl End {
    /// As a plan calls it.
    pub fn name(self) -> &'static str {
        match self {
            End::Embedding => "embedding",
            End::Head => "head",
        }
    }

    /// What passes between it and the layers, if it is not in one graph with them. Genie asks for
    /// the first of these names.
    pub fn value(self) -> &'static str {
        match self {
            End::Embedding => inputs::EMBEDDINGS,
            End::Head => "output_norm",
        }
    }

    /// Whether it computes with the tensors of `spec` that are `role`.
    pub fn reads(self, role: Role, spec: &DecoderSpec) -> bool {
        match (self, role) {
            (End::Embedding, Role::Embedding) | (End::Head, Role::Head) => true,
            (End::Head, Role::Embedding) => spec.head.tied,
            (End::Embedding, Role::Head) | (_, Role::FinalNorm | Role::Layer(..)) => false,
        }
    }

    /// What the file of its graph `role` is called, but for the ending: `prefill-head`.
    pub fn graph_stem(self, role: &str) -> String {
        format!("{role}-{}", self.name())
    }
}

/// Some layers of a decoder, in a row. The first shard has the embedding too, the last the head,
/// unless these are the CPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which of the shards it is, from 1.
    pub part: u32,
    /// How many there are.
    pub of: u32,
    /// Its first layer.
    pub first: u32,
    /// The layer after its last.
    pub end: u32,
    /// What computes the ends of the model that are beside its layers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub place: Place,
}

/// How long an embedding and a head take to compile, beside as many weights of a layer: a table is
/// only copied, 8-bit blocks take a little longer than 4-bit ones. Measured at 1.5 B weights: 15 s,
/// 56 s and 47 s.
const EMBEDDING: f64 = 0.3;
const HEAD: f64 = 1.2;

/// What a matrix takes to compile, if a weight takes `share`.
fn cost(share: f64, matrix: &TensorSpec) -> f64 {
    let columns_first = matrix.shape.iter().rev();
    columns_first.fold(share, |product, extent| product * *extent as f64)
}

impl Shard {
    /// All of `spec`.
    pub fn whole(spec: &DecoderSpec) -> Self {
        Shard {
            part: 1,
            of: 1,
            first: 0,
            end: spec.block_count(),
            place: Place::default(),
        }
    }

    /// `spec` in so many shards that take about as long to compile, without what is the CPU's.
    /// Where they are cut depends on the shapes of the weights alone: a layer that is held in
    /// another way stays in its shard. Refused: more shards than layers.
    pub fn cut(spec: &DecoderSpec, count: u32, place: Place) -> Result<Vec<Self>> {
        let layers = spec.block_count();
        if !(1..=layers).contains(&count) {
            return Err(Problem::new(
                Code::ShardsCount,
                format!("{layers} layers make no {count} shards"),
            )
            .help(format!(
                "each shard takes a layer at least: `shards` goes from 1 to {layers}"
            )));
        }
        let all = tensors(spec);
        let matrices = || all.iter().filter(|tensor| tensor.is_matrix());
        let of_layers = matrices().filter(|tensor| matches!(tensor.role, Role::Layer(..)));
        // All layers have the same matrices.
        let layer = of_layers.map(|matrix| cost(1.0, matrix)).sum::<f64>() / f64::from(layers);
        let at_end = |end: End, processor, share| {
            let table = matrices().find(|tensor| end.reads(tensor.role, spec));
            match processor {
                Processor::Npu => table.map_or(0.0, |table| cost(share, table)),
                Processor::Cpu => 0.0,
            }
        };
        let embedding = at_end(End::Embedding, place.embedding, EMBEDDING);
        let head = at_end(End::Head, place.head, HEAD);
        let total = f64::from(layers) * layer + embedding + head;
        let before = |part: u32| match part {
            0 => 0,
            part if part == count => layers,
            part => {
                let here = (total * f64::from(part) / f64::from(count) - embedding) / layer;
                (here.round() as u32).clamp(part, layers - (count - part))
            }
        };
        let beside = |is_there, processor| if is_there { processor } else { Processor::Npu };
        let shard = |part: u32| Shard {
            part: part + 1,
            of: count,
            first: before(part),
            end: before(part + 1),
            place: Place {
                embedding: beside(part == 0, place.embedding),
                head: beside(part + 1 == count, place.head),
            },
        };
        Ok((0..count).map(shard).collect())
    }

    /// Whether it is all of the model.
    pub fn is_whole(&self) -> bool {
        self.of == 1 && self.place == Place::default()
    }

    /// Whether the model ends with it.
    pub fn is_last(&self) -> bool {
        self.part == self.of
    }

    /// Whether it begins with the embedding.
    pub fn has_embedding(&self) -> bool {
        self.part == 1 && self.place.embedding == Processor::Npu
    }

    /// Whether it ends with the head.
    pub fn has_head(&self) -> bool {
        self.is_last() && self.place.head == Processor::Npu
    }

    /// Whether it computes with the tensors of `spec` that are `role`.
    pub fn reads(&self, role: Role, spec: &DecoderSpec) -> bool {
        match role {
            Role::Layer(layer, _) => (self.first..self.end).contains(&layer),
            Role::FinalNorm => self.is_last(),
            Role::Embedding | Role::Head => {
                self.has_embedding() && End::Embedding.reads(role, spec)
                    || self.has_head() && End::Head.reads(role, spec)
            }
        }
    }

    /// The folder of what is made of it: `1-of-4`; none if it is the whole.
    pub fn folder(&self) -> String {
        if self.is_whole() {
            String::new()
        } else {
            format!("{}-of-{}", self.part, self.of)
        }
    }

    /// What the file of its graph `role` is called, but for the ending: `prefill-1-of-4`, or
    /// `prefill` if it is the whole.
    pub fn graph_stem(&self, role: &str) -> String {
        if self.is_whole() {
            role.into()
        } else {
            format!("{role}-{}", self.folder())
        }
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
    fn shards_take_about_as_long() {
        let cut = |count, place| -> Vec<_> {
            Shard::cut(&model(), count, place)
                .unwrap()
                .iter()
                .map(|shard| shard.end - shard.first)
                .collect()
        };
        let npu = Place::default();
        // The embedding takes as long as one and a half layers, the head as six.
        assert_eq!(cut(1, npu), [28]);
        assert_eq!(cut(2, npu), [16, 12]);
        assert_eq!(cut(4, npu), [7, 9, 9, 3]);
        assert_eq!(cut(28, npu), [1; 28]);
        assert_eq!(
            cut(
                4,
                Place {
                    embedding: Processor::Cpu,
                    head: Processor::Cpu
                }
            ),
            [7, 7, 7, 7]
        );
        assert!(Shard::cut(&model(), 29, npu).is_err() && Shard::cut(&model(), 0, npu).is_err());
    }

    #[test]
    fn a_tensor_is_read_where_its_layer_is() {
        let check = |name: &str, tied: bool, on_npu: &[u32], on_cpu: &[u32]| {
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
                let readers: Vec<u32> = shards
                    .iter()
                    .filter(|shard| shard.reads(role, &spec))
                    .map(|shard| shard.part)
                    .collect();
                assert_eq!(readers, expected, "{name}");
            }
        };
        check("blk.6.ffn_down.weight", false, &[1], &[1]);
        check("blk.7.attn_q.bias", false, &[2], &[2]);
        check("token_embd.weight", false, &[1], &[]);
        check("token_embd.weight", true, &[1, 4], &[]);
        check("output.weight", false, &[4], &[]);
        check("output_norm.weight", true, &[4], &[4]);
    }

    #[test]
    fn only_a_shard_beside_an_end_of_the_cpu_differs() {
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
        let whole = Shard::cut(&model, 1, place).unwrap()[0];
        assert_eq!(
            (
                whole.folder().as_str(),
                Shard::whole(&model).folder().as_str()
            ),
            ("1-of-1", "")
        );
    }
}
