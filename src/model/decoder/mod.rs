//! Decoder-only transformers: the description of a decoder, the supported architectures, the
//! tensors, and the inputs and outputs of a decoder graph. Graph, reference, runners and bundles
//! read these definitions.

pub mod arch;
pub mod inputs;
mod rotary;
pub mod shards;
mod spec;
mod structure;
pub mod tensors;

pub use rotary::{RopeRows, RopeScaling, Rotary};
pub use spec::{
    Activation, Attention, DecoderSpec, Embedding, Head, Layer, MAX_LAYERS, Norms, QkNorm, Window,
    not_supported,
};
pub use structure::{ModelFacts, Structure};
