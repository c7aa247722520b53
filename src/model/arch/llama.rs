//! Llama and its kin (SmolLM2, TinyLlama, Mistral). `convert_hf_to_gguf.py` permutes the rows of q
//! and k for interleaved RoPE.

use super::Architecture;
use crate::model::facts::RopeRows;

/// The architecture `llama`.
pub static LLAMA: Architecture = Architecture {
    name: "llama",
    rope_rows: RopeRows::Interleaved,
    needs_qkv_bias: false,
};
