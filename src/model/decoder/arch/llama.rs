//! Llama and models of the same architecture (SmolLM2, TinyLlama, Mistral): the plain decoder, with
//! biases on q, k and v if the file has them. `convert_hf_to_gguf.py` permutes the rows of q and k
//! for interleaved RoPE.

use super::Architecture;
use super::keys::Keys;
use crate::model::decoder::tensors::{LayerTensor, Role};
use crate::model::decoder::{DecoderSpec, RopeRows};

/// The architecture `llama`.
pub(super) static LLAMA: Architecture = Architecture {
    name: "llama",
    decoder,
};

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let has_bias = has_qkv_bias(keys);
    keys.plain(RopeRows::Interleaved, has_bias)
}

/// Whether the file has biases on q, k and v. Many architectures allow them.
pub(super) fn has_qkv_bias(keys: &Keys) -> bool {
    keys.has_tensor(&Role::Layer(0, LayerTensor::Query).bias())
}
