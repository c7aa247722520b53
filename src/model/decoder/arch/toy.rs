//! An architecture for unit tests: a `llama` with half-split rows, biases, a score scale, and RoPE
//! in every other layer. Only the tests of `arch/mod.rs` use it.

use super::Architecture;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, RopeRows};

/// The architecture `toy`.
pub(super) static TOY: Architecture = Architecture {
    name: "toy",
    decoder,
};

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let scale = keys.require("attention.scale");
    let mut spec = keys.plain(RopeRows::HalfSplit, true);
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        layer.attention.score_scale = scale;
        if index % 2 == 1 {
            layer.attention.rotary = None;
        }
    }
    spec
}
