//! Granite 3, and the dense models of Granite 4: the decoder of `llama`, where embedding, branches,
//! scores and logits are multiplied by factors. A factor of 0 is as good as none, as in llama.cpp.

use super::Architecture;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, RopeRows};

/// The architecture `granite`.
pub(super) static GRANITE: Architecture = Architecture {
    name: "granite",
    decoder,
};

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let has_bias = keys.has_qkv_bias();
    let mut spec = keys.plain(RopeRows::Interleaved, has_bias);
    spec.embedding.scale = keys.factor("embedding_scale");
    // The logits are divided by it.
    spec.head.scale = keys.required_factor("logit_scale").map(f32::recip);
    let score_scale = keys.factor("attention.scale");
    let residual_scale = keys.factor("residual_scale");
    let is_rotated = keys.optional("rope.scaling.finetuned").unwrap_or(true);
    for layer in &mut spec.layers {
        layer.attention.score_scale = score_scale;
        layer.residual_scale = residual_scale;
        if !is_rotated {
            layer.attention.rotary = None;
        }
    }
    spec
}
