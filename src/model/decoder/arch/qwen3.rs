//! Qwen3 (dense): the plain decoder with rows in half-split (NeoX) order, and an RMSNorm of each head
//! of queries and keys.

use super::Architecture;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, QkNorm, RopeRows};

/// The architecture `qwen3`.
pub(super) static QWEN3: Architecture = Architecture {
    name: "qwen3",
    decoder,
};

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let has_bias = keys.has_qkv_bias();
    let mut spec = keys.plain(RopeRows::HalfSplit, has_bias);
    for layer in &mut spec.layers {
        layer.attention.qk_norm = QkNorm::PerHead;
    }
    spec
}
