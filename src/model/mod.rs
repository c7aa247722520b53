//! Formats of models and weights. Does not depend on the engine or the stores.

pub mod calibration;
pub mod decoder;
pub mod facts;
pub mod fidelity;
pub mod gguf;
pub mod onnx;
pub mod quant;
pub mod quant_report;
pub mod reference;
pub mod rotation;
pub mod summary;
pub mod tokenizer;
pub mod weight;
