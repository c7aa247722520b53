//! Runs a candidate and measures it: its graphs in ONNX Runtime, its context binaries on the HTP
//! simulator.

mod candidate;
pub mod decoder;
mod demand;
mod htp;
mod layers;
mod lookup;
mod mask;
mod measure;
mod observe;
mod onnx_runtime;
mod split;
mod windows;

pub use candidate::{Candidate, SIMULATOR, decoder, model, simulator_demand};
pub use decoder::Decoder;
pub use demand::of_layers;
pub use htp::Htp;
pub use layers::{Observer, SLICE_ELEMENTS};
pub use measure::{score_greedy, score_ranges, score_window};
pub use observe::{PREFILL, observe};
pub use onnx_runtime::OnnxRuntime;
pub use windows::{MAX_WINDOWS, windows};
