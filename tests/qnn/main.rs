//! Tests that load Qualcomm's libraries into the process of the test: a crate apart from `it`, since a
//! library that crashes ends every test of its process.

#[allow(dead_code)]
#[path = "../it/support/mod.rs"]
mod support;

mod inspect_device;
mod interpreter;
mod libraries;
mod lower_runs;
mod native_weights;
