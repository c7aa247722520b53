//! Gemma 2: scores and logits are capped, and every other layer attends to a window. The head is the
//! embedding.

use super::Architecture;
use super::gemma::Gemma;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, Window};

/// The architecture `gemma2`.
pub(super) static GEMMA2: Architecture = Architecture {
    name: "gemma2",
    decoder,
};

const GEMMA: Gemma = Gemma {
    window: 4096,
    period: 2,
    layers_of_27b: 46,
};

/// The caps of a file without the keys.
const SCORE_CAP: f32 = 50.0;
const LOGIT_CAP: f32 = 30.0;

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let mut spec = GEMMA.decoder(keys);
    spec.head.tied = true;
    spec.head.soft_cap = Some(keys.cap("final_logit_softcapping").unwrap_or(LOGIT_CAP));
    let score_cap = keys.cap("attn_logit_softcapping").unwrap_or(SCORE_CAP);
    let local_base = keys.optional("rope.freq_base_swa");
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        attention.score_cap = Some(score_cap);
        if let (Window::Sliding(_), Some(base), Some(rotary)) =
            (attention.window, local_base, &mut attention.rotary)
        {
            rotary.base = base;
        }
    }
    spec
}
