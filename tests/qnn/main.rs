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

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by each test that loads a library: two backends in one process disturb each other, up to a
/// crash or a wrong result.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
