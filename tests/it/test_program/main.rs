//! A helper program of tests: kiln with simple stage kinds. It is a binary of this crate, so that
//! cargo builds it with the tests and they find it by `CARGO_BIN_EXE_test-program`.

#![allow(unreachable_pub)]

mod make;
mod scripted;

use std::process::ExitCode;

use kiln::action::Registry;
use kiln::cli::Cli;

fn main() -> ExitCode {
    let mut stages = Vec::from(make::stages());
    stages.push(Box::new(scripted::Scripted));
    let cli = Cli::read();
    match cli.run(&Registry::new(stages)) {
        Ok(exit) => exit.into(),
        Err(failed) => cli.common.report(&failed).into(),
    }
}
