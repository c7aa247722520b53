//! `kiln work`: runs one action; what child processes do.

use super::{Common, Exit, Failed};
use crate::base::Problem;

/// What to work.
#[derive(clap::Args)]
pub struct Args {
    /// The action's canonical text
    #[arg(value_name = "ACTION.json")]
    action: std::path::PathBuf,
}

/// Runs the subcommand.
pub fn run(_args: &Args, _common: &Common) -> Result<Exit, Failed> {
    Err(Problem::new("kiln::call::not_there", "`kiln work` is not there yet").into())
}
