//! Qwen2 and Qwen2.5: llama with biases on q, k and v, and rows left in half-split (NeoX) order.

use super::Architecture;
use crate::model::facts::RopeRows;

/// The architecture `qwen2`.
pub static QWEN2: Architecture = Architecture {
    name: "qwen2",
    rope_rows: RopeRows::HalfSplit,
    needs_qkv_bias: true,
};
