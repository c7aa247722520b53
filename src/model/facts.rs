//! Facts: the metadata that stages attach to the parts of an artifact. Facts are part of keys, so
//! every field is deterministic. `docs/artifacts.md` shows them in use.

use serde::{Deserialize, Serialize};

use super::decoder::Structure;
use super::shards::{Place, Shard};
use super::weight::{Element, WeightUse};

/// A decoder-only transformer as facts. Code uses it as a
/// [`DecoderSpec`](super::decoder::DecoderSpec).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Name of the architecture in the model file: `llama`.
    pub architecture: String,
    /// Number of decoder layers.
    pub block_count: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of the feed-forward layer.
    pub ffn: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Rows of the embedding.
    pub vocab: u32,
    /// Longest context the model was trained for, in tokens.
    pub context_length: u32,
    /// The epsilon of RMSNorm.
    pub rms_epsilon: f32,
    /// The base of RoPE's frequencies.
    pub rope_freq_base: f32,
    /// RoPE layout of the rows of `attn_q` and `attn_k` in this file.
    pub rope_rows: RopeRows,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the head uses the matrix of the embedding.
    pub tied_embeddings: bool,
    /// Features that the other fields cannot express; `None` if the decoder has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<Structure>,
}

/// Which rows of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RopeRows {
    /// Rows 2i and 2i+1 (GGUF files of `llama`).
    Interleaved,
    /// Rows i and i + head_dim/2 (NeoX: `qwen2`, Hugging Face).
    HalfSplit,
}

/// A tensor of a GGUF.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorFacts {
    /// Outermost dimension first: `[rows, columns]`, `[n]`.
    pub shape: Vec<u64>,
    /// ggml's name of the type: `Q4_0`.
    #[serde(rename = "type")]
    pub ggml_type: String,
}

/// What `metadata.gguf` omits of the file that it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetadataFacts {
    /// The names of the tensors, in the order of the file.
    pub tensors: Vec<String>,
}

/// An array of plain numbers, little-endian and row-major: logits, an embedding table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArrayFacts {
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// Type of its numbers.
    pub element: Element,
}

/// The layer and the rest of a tensor name of GGUF: `3` and `ffn_down.weight` of
/// `blk.3.ffn_down.weight`.
pub fn in_layer(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("blk.")?.split_once('.')
}

/// A graph that the `graph` stage writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphFacts {
    /// Name of the graph in the form that Genie expects: `prompt_ar128_cl512_1_of_1`.
    pub name: String,
    /// Tokens per call.
    pub tokens: u32,
    /// Tokens that attention covers, past and new.
    pub context: u32,
    /// The part of the model that it computes; `None` for the whole model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// Each kind of use of weight matrices, once. `context-bin` verifies these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<WeightUse>,
}

/// A context binary: the facts of `model.bin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextFacts {
    /// The target chip: `sm8650`.
    pub soc: String,
    /// Whether its graphs share weights; if so, the simulator cannot load it.
    pub weight_sharing: bool,
    /// The graphs by role: `prefill`, `decode`.
    pub graphs: std::collections::BTreeMap<String, GraphFacts>,
}

impl ContextFacts {
    /// The part of the model that it computes; `None` for the whole model.
    pub fn shard(&self) -> Option<Shard> {
        for graph in self.graphs.values() {
            if graph.shard.is_some() {
                return graph.shard;
            }
        }
        None
    }

    /// What computes the embedding and the head of the model that is compiled in `binaries`.
    pub fn place<'a>(binaries: impl IntoIterator<Item = &'a ContextFacts>) -> Place {
        let mut shards = vec![];
        for binary in binaries {
            shards.extend(binary.shard());
        }
        Place::of(&shards)
    }
}
