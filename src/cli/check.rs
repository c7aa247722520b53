//! `kiln check`: says everything that is wrong with a plan.

use super::{Common, Exit, Failed, PlanArgs};
use crate::base::Problem;

/// What to check.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
}

/// Runs the subcommand.
pub fn run(_args: &Args, _common: &Common) -> Result<Exit, Failed> {
    Err(Problem::new("kiln::call::not_there", "`kiln check` is not there yet").into())
}
