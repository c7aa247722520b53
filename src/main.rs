//! The program `kiln`: parses the command line, runs the subcommand and sets the exit code.

use std::process::ExitCode;

use kiln::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::read();
    match cli.run(&kiln::stages::all()) {
        Ok(exit) => exit.into(),
        Err(failed) => cli.common.report(&failed).into(),
    }
}
