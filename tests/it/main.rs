//! The integration tests: one crate, so that ONNX Runtime's interface and tokenizers are linked
//! once. One file a subject: `cargo test --test it -- SUBJECT::`.
//!
//! The tests run on threads of one process: none may change its environment, its working directory or
//! its descriptors. Vendor libraries are loaded by child processes, as in a build; those few tests that
//! load them themselves are in `tests/qnn`.

mod support;

mod activations;
mod bundle;
mod cache_bundle;
mod cache_gc;
mod calibrate;
mod choose;
mod ci_doc;
mod cli;
mod command;
mod concurrent_builds;
mod damage;
mod engine;
mod engine_drive;
mod evaluate_layers;
mod events_doc;
mod executors;
mod faults;
mod fetch;
mod fetch_wheels;
mod full_disk;
mod gguf;
mod gguf_arch;
mod gguf_cli;
mod gguf_split;
mod gguf_stages;
mod gguf_writer;
mod graph;
mod init;
mod kernels;
mod keys;
mod kill;
mod layers;
mod listeners;
mod locked_figures;
mod lower;
mod memory;
mod memory_of_models;
mod netron;
mod on_device;
mod onnx;
mod place;
mod place_simulated;
mod places;
mod plan_format_doc;
mod plan_matrix;
mod plans;
mod problems;
mod qnn_stages;
mod quant;
mod records;
mod reference;
mod replay;
mod reports;
mod reproduce;
mod schema;
mod schemes;
mod score;
mod shards;
mod soak;
mod store_audit;
mod store_publish;
mod stores;
mod tiny_gguf;
mod tokenizer;
mod tracked;
mod usage;
mod validate;
