//! `kiln doctor`: says what this machine has and lacks.

use super::{Common, Exit, Failed};
use crate::base::Problem;

/// What to doctor.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the subcommand.
pub fn run(_args: &Args, _common: &Common) -> Result<Exit, Failed> {
    Err(Problem::new("kiln::call::not_there", "`kiln doctor` is not there yet").into())
}
