//! Floor 1: formats of models. Knows no engine and no cache.

pub mod calibration;
pub mod decoder;
pub mod facts;
pub mod fidelity;
pub mod gguf;
pub mod onnx;
pub mod quant;
pub mod quant_report;
pub mod reference;
pub mod shards;
pub mod tokenizer;
pub mod weight;
