//! kiln fires GGUF language models into Qualcomm NPU context binaries, by a declarative plan.
//!
//! The map, from the top floor down; a room uses the floors below it (`docs/architecture.md`):
//!
//! | floor | room | purpose |
//! |---|---|---|
//! | 6 | [`cli`] | puts everything together; the only room that names concrete things |
//! | 5 | [`stages`], [`engine`] | what is done; when it is done |
//! | 4 | [`compile`], [`run`] | what compiling takes; how graphs and binaries are run |
//! | 4 | [`plan`], [`events`], [`execute`] | text to plan; what is told; where actions run |
//! | 3 | [`store`] | blobs and results, by digest |
//! | 3 | [`artifact`], [`lower`] | what stages hand over; ONNX to operators of the device |
//! | 2 | [`action`] | the contract |
//! | 1 | [`model`], [`qnn`] | formats; the device |
//! | 0 | [`base`] | digest, canonical text, problem, units |

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
