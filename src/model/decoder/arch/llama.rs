//! Llama and models of the same architecture (SmolLM2, TinyLlama, Mistral): the plain decoder, with
//! biases on q, k and v if the file has them. `convert_hf_to_gguf.py` permutes the rows of q and k
//! for interleaved RoPE.

use super::Architecture;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, RopeRows};

/// The architecture `llama`.
pub(super) static LLAMA: Architecture = Architecture {
    name: "llama",
    decoder,
};

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let has_bias = keys.has_qkv_bias();
    keys.plain(RopeRows::Interleaved, has_bias)
}
