//! Qwen2 and Qwen2.5: the plain decoder with biases on q, k and v, and rows in half-split (NeoX)
//! order.

use super::Architecture;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, RopeRows};

/// The architecture `qwen2`.
pub(super) static QWEN2: Architecture = Architecture {
    name: "qwen2",
    decoder,
};

fn decoder(keys: &mut Keys) -> DecoderSpec {
    keys.plain(RopeRows::HalfSplit, true)
}
