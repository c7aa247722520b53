//! Facts: the metadata that stages attach to the parts of an artifact. Facts are part of keys, so
//! every field is deterministic. Those of decoders, weights and tensors of a GGUF are in `decoder`,
//! `weight` and `quant`. `docs/artifacts.md` shows them in use.

use serde::{Deserialize, Serialize};

use super::decoder::shards::{Place, Shard};
use super::weight::{Element, WeightUse};

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

/// The name of the values of all heads, for a value of some of them: `blk.3.scores` for
/// `blk.3.scores.5`. Every other name is returned as it is.
pub fn of_all_heads(name: &str) -> &str {
    match in_layer(name).and_then(|(_, what)| what.rsplit_once('.')) {
        Some((_, piece)) if piece.bytes().all(|byte| byte.is_ascii_digit()) => {
            &name[..name.len() - piece.len() - 1]
        }
        _ => name,
    }
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
