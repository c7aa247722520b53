//! Phi-3, Phi-3.5 and Phi-4: the decoder of `llama` with rows in half-split (NeoX) order. The file
//! has q, k and v as one matrix, and gate and up as another. Phi-4-mini rotates some columns of a
//! head only.

use super::Architecture;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, RopeRows};

/// The architecture `phi3`.
pub(super) static PHI3: Architecture = Architecture {
    name: "phi3",
    decoder,
};

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let mut spec = keys.plain(RopeRows::HalfSplit, false);
    let dims = keys.optional("rope.dimension_count");
    // Converters write it, and llama.cpp attends to all tokens.
    keys.ignore("attention.sliding_window");
    for layer in &mut spec.layers {
        layer.fused_gate_up = true;
        if let (Some(rotary), Some(dims)) = (&mut layer.attention.rotary, dims) {
            rotary.dims = dims;
        }
    }
    spec
}
