//! `kiln completions`: prints a shell completion script.

use clap_complete::{Shell, generate};

use super::{Cli, Common, Exit};

/// Which shell.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script.
pub(super) fn run(args: &Args, common: &Common) -> Exit {
    let mut script = vec![];
    generate(args.shell, &mut Cli::public_command(), "kiln", &mut script);
    common.print_raw(&String::from_utf8_lossy(&script));
    Exit::Done
}
