//! `kiln inspect`: describes a file.

use super::{Common, Exit, Failed};
use crate::base::Problem;

/// What to inspect.
#[derive(clap::Args)]
pub struct Args {
    /// The file
    file: std::path::PathBuf,
}

/// Runs the subcommand.
pub fn run(_args: &Args, _common: &Common) -> Result<Exit, Failed> {
    Err(Problem::new("kiln::call::not_there", "`kiln inspect` is not there yet").into())
}
