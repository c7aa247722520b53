//! The program: read the call, do what it asks, leave with an exit code.

use std::process::ExitCode;

use kiln::cli::Call;

fn main() -> ExitCode {
    let call = Call::read();
    match call.run(&kiln::stages::all()) {
        Ok(exit) => exit.into(),
        Err(failed) => call.common.report(&failed).into(),
    }
}
