//! The program `kiln`: parses the command line, runs the subcommand and sets the exit code.

use std::process::ExitCode;

use kiln::cli::Cli;
use mimalloc::MiMalloc;

/// kiln's own memory, apart from that of the libraries it loads: what Qualcomm's compiler writes
/// depends on the order of the addresses that the C library's `malloc` gives it.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::read();
    match cli.run(&kiln::stages::all()) {
        Ok(exit) => exit.into(),
        Err(failed) => cli.common.report(&failed).into(),
    }
}
