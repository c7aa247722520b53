//! The integration tests. They are one crate, so that large dependencies are linked once, with one
//! module per topic: `cargo test --test it -- TOPIC::`.
//!
//! The tests run on threads of one process, so none may change its environment, working directory
//! or file descriptors. Vendor libraries are loaded by child processes, as in a build; the tests
//! that load them directly are in `tests/qnn`.

// The modules in `support` belong to several crates.
#![allow(unreachable_pub)]

mod support;

mod activations;
mod architectures;
mod bundle;
mod bundle_config;
mod cache_bundle;
mod cache_gc;
mod calibrate;
mod ci_doc;
mod cli;
mod command;
mod command_qairt;
mod concurrent_builds;
mod damage;
mod engine;
mod engine_drive;
mod estimate;
mod evaluate;
mod evaluate_layers;
mod events_doc;
mod executors;
mod export_gguf;
mod faults;
mod fetch;
mod fetch_wheels;
mod full_disk;
mod gguf;
mod gguf_arch;
mod gguf_cli;
mod gguf_split;
mod gguf_stages;
mod graph;
mod init;
mod kernels;
mod keys;
mod kill;
mod layers;
mod listeners;
mod locked_measurements;
mod locks;
mod lower;
mod memory;
mod memory_of_models;
mod mixed_precision;
mod netron;
mod on_device;
mod onnx;
mod output_paths;
mod place;
mod place_simulated;
mod plan_format_doc;
mod plan_matrix;
mod plans;
mod problems;
mod qnn_stages;
mod quant;
mod records;
mod reference;
mod releases;
mod replay;
mod reports;
mod reproduce;
mod schema;
mod schemes;
mod sdk;
mod shards;
mod shifted_blocks;
mod soak;
mod store_audit;
mod store_publish;
mod stores;
mod tiny_gguf;
mod tokenizer;
mod tracked;
mod usage;
mod validate;
