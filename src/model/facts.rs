//! What the parts of an artifact say of themselves: the words that stages hand over besides bytes.
//! Facts take part in keys, so every field is deterministic. `docs/artifacts.md` shows them in use.

use serde::{Deserialize, Serialize};

use super::decoder::Structure;
use super::shards::{Place, Shard};
use super::weight::{Element, WeightUse};

/// What a decoder-only transformer is, as facts hold it. Programs read it as a
/// [`DecoderSpec`](super::decoder::DecoderSpec).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// What its file calls the architecture: `llama`.
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
    /// How the rows of `attn_q` and `attn_k` are laid out for RoPE in this file.
    pub rope_rows: RopeRows,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the head is the embedding.
    pub tied_embeddings: bool,
    /// What the fields above cannot say: of a decoder that is no plain one.
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

/// A tensor as a GGUF holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorFacts {
    /// Outermost dimension first: `[rows, columns]`, `[n]`.
    pub shape: Vec<u64>,
    /// ggml's name of the type: `Q4_0`.
    #[serde(rename = "type")]
    pub ggml_type: String,
}

/// What `metadata.gguf` leaves out of the file that it was made of.
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

/// The layer and the rest of a name of GGUF's form: `3` and `ffn_down.weight` of
/// `blk.3.ffn_down.weight`.
pub fn in_layer(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("blk.")?.split_once('.')
}

/// The two graphs that the `graph` stage writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphFacts {
    /// Name of the graph, as Genie reads it: `prompt_ar128_cl512_1_of_1`.
    pub name: String,
    /// Tokens of one call.
    pub tokens: u32,
    /// Tokens that attention sees: past and new.
    pub context: u32,
    /// What it computes of the model, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// What it does with weight matrices, each once. `context-bin` proves these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<WeightUse>,
}

/// A context binary: the facts of `model.bin`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContextFacts {
    /// The chip it is for: `sm8650`.
    pub soc: String,
    /// Whether its graphs share weights; the simulator loads it only if not.
    pub weight_sharing: bool,
    /// Its graphs by role: `prefill`, `decode`.
    pub graphs: std::collections::BTreeMap<String, GraphFacts>,
}

impl ContextFacts {
    /// What it computes of the model, if not all.
    pub fn shard(&self) -> Option<Shard> {
        self.graphs.values().find_map(|graph| graph.shard)
    }

    /// What computes the ends of the model that is compiled in `binaries`.
    pub fn place<'a>(binaries: impl IntoIterator<Item = &'a ContextFacts>) -> Place {
        Place::of(
            &binaries
                .into_iter()
                .filter_map(ContextFacts::shard)
                .collect::<Vec<_>>(),
        )
    }
}
