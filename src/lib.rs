//! kiln builds Qualcomm NPU context binaries from GGUF language models, as a declarative plan
//! describes.
//!
//! The modules by layer. A module uses only modules of lower layers (`docs/architecture.md`):
//!
//! | layer | modules | purpose |
//! |---|---|---|
//! | 7 | [`cli`] | the subcommands; the only module that names concrete types of all others |
//! | 6 | [`records`] | lock files, receipts, provenance |
//! | 5 | [`stages`], [`engine`] | the stage kinds; the scheduler |
//! | 4 | [`compile`], [`run`], [`device`], [`report`] | compilation; inference; devices; reports |
//! | 4 | [`plan`], [`events`], [`execute`] | plan files; build events; execution of actions |
//! | 3 | [`store`] | blobs and results, addressed by digest |
//! | 3 | [`artifact`], [`lower`] | schemas of stage outputs; ONNX to device operators |
//! | 2 | [`action`] | the interface of stages: actions, parts, manifests |
//! | 1 | [`model`], [`qnn`] | model formats; Qualcomm's libraries |
//! | 0 | [`base`] | digests, canonical JSON, problems, units |

pub mod action;
pub mod artifact;
pub mod base;
pub mod cli;
pub mod compile;
pub mod device;
pub mod engine;
pub mod events;
pub mod execute;
pub mod lower;
pub mod model;
pub mod plan;
pub mod qnn;
pub mod records;
pub mod report;
pub mod run;
pub mod stages;
pub mod store;
