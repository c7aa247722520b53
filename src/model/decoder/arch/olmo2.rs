//! OLMo 2: rows in half-split (NeoX) order, one RMSNorm over all heads of the queries and one over
//! those of the keys, and RMSNorm after the branches instead of before. The head has a matrix of its
//! own.

use super::Architecture;
use super::keys::Keys;
use crate::model::decoder::{DecoderSpec, Norms, QkNorm, RopeRows};

/// The architecture `olmo2`.
pub(super) static OLMO2: Architecture = Architecture {
    name: "olmo2",
    decoder,
};

fn decoder(keys: &mut Keys) -> DecoderSpec {
    let mut spec = keys.plain(RopeRows::HalfSplit, false);
    spec.head.tied = false;
    for layer in &mut spec.layers {
        layer.norms = Norms::After;
        layer.attention.qk_norm = QkNorm::WholeRow;
    }
    spec
}
