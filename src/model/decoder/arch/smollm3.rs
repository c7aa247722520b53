//! SmolLM3: the decoder of `llama`, without RoPE in every fourth layer. No key of the file says so;
//! llama.cpp has the same constant.

use super::Architecture;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, RopeRows};

/// The architecture `smollm3`.
pub(super) static SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    decoder,
};

/// Of so many layers, the last one has no RoPE.
const PERIOD: usize = 4;

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let has_bias = keys.has_qkv_bias();
    let mut spec = keys.plain(RopeRows::Interleaved, has_bias);
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        if (index + 1).is_multiple_of(PERIOD) {
            layer.attention.rotary = None;
        }
    }
    spec
}
