//! Gemma 3, text: an RMSNorm of each head of queries and keys, and five of six layers attend to a
//! window, with a RoPE of their own.

use super::Architecture;
use super::gemma::Gemma;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, QkNorm, Rotary, Window};

/// The architecture `gemma3`.
pub(super) static GEMMA3: Architecture = Architecture {
    name: "gemma3",
    decoder,
};

const GEMMA: Gemma = Gemma {
    window: 0,
    period: 6,
    layers_of_27b: 62,
};

/// The base of RoPE in layers with a window, without the key.
const LOCAL_BASE: f32 = 10000.0;

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let mut spec = GEMMA.decoder(keys);
    spec.head.soft_cap = keys.cap("final_logit_softcapping");
    let local_base = keys.optional("rope.freq_base_swa").unwrap_or(LOCAL_BASE);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        attention.qk_norm = QkNorm::PerHead;
        if let (Window::Sliding(_), Some(rotary)) = (attention.window, &mut attention.rotary) {
            // Its frequencies are not scaled.
            *rotary = Rotary::plain(rotary.layout, rotary.dims, local_base);
        }
    }
    spec
}
