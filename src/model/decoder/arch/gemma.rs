//! What Gemma 2 and 3 have in common: an embedding scaled by the root of its width, RMSNorm around
//! the branches, GELU, and layers that attend to a sliding window only. The converter adds 1 to the
//! weights of every RMSNorm, so they are as in other files.

use super::keys::Keys;
use crate::model::decoder::{Activation, DecoderSpec, Norms, RopeRows, Window};

/// What differs between the two.
pub(super) struct Gemma {
    /// The window if the file has no key for it; 0 for none.
    pub(super) window: u32,
    /// Of so many layers, the last one attends to all tokens.
    pub(super) period: u32,
    /// The number of layers of the 27B, whose queries are scaled by the width of the residual
    /// stream: no key of the file says so, llama.cpp has the same constants.
    pub(super) layers_of_27b: u32,
}

impl Gemma {
    /// The decoder of the file.
    pub(super) fn decoder(&self, keys: &mut Keys) -> DecoderSpec {
        let mut spec = keys.plain(RopeRows::HalfSplit, false);
        spec.embedding.scale = Some((spec.hidden as f32).sqrt());
        let score_scale = match spec.block_count() {
            count if count == self.layers_of_27b => {
                Some((spec.hidden as f32 / spec.heads as f32).sqrt().recip())
            }
            _ => None,
        };
        let window = keys.optional("attention.sliding_window");
        let window = window.unwrap_or(self.window);
        let are_local = keys.local_layers(self.period, spec.block_count());
        for (layer, is_local) in spec.layers.iter_mut().zip(are_local) {
            layer.norms = Norms::Around;
            layer.activation = Activation::GeluTanh;
            layer.attention.score_scale = score_scale;
            if is_local && window > 0 {
                layer.attention.window = Window::Sliding(window);
            }
        }
        for key in ["rope.dimension_count_swa", "attention.key_length_swa"] {
            keys.require_equal(key, spec.head_dim);
        }
        spec
    }
}
