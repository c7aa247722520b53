//! What a decoder-only transformer is: its description, the architectures that files name, its
//! tensors, and what a host feeds it. Each of them is said here once; graph, reference, runners and
//! bundles read it.

pub mod arch;
pub mod inputs;
mod spec;
mod structure;
pub mod tensors;

pub use spec::{
    Activation, Attention, DecoderSpec, Embedding, Head, Layer, MAX_LAYERS, Norms, QkNorm, Rotary,
    Window, not_supported, refuse_any,
};
pub use structure::Structure;
