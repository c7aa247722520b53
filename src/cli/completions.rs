//! `kiln completions`: a script by which a shell completes calls of kiln.

use clap_complete::{Shell, generate};

use super::{Call, Common, Exit};

/// For which shell.
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, common: &Common) -> Exit {
    let mut script = vec![];
    generate(args.shell, &mut Call::shown(), "kiln", &mut script);
    common.print_as_it_is(&String::from_utf8_lossy(&script));
    Exit::Done
}
