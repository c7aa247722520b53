//! Tests that load Qualcomm's libraries into the test process. They are a separate crate, since a
//! crash in a library ends all tests of the process.

// The modules in `support` belong to several crates.
#![allow(unreachable_pub)]

#[allow(dead_code)]
#[path = "../it/support/mod.rs"]
mod support;

mod inspect_device;
mod interpreter;
mod libraries;
mod lower_runs;
mod native_weights;
