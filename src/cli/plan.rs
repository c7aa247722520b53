//! `kiln plan`: says what a build would run or skip, and why.

use super::{Common, Exit, Failed, PlanArgs};
use crate::base::Problem;

/// What to plan.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
}

/// Runs the subcommand.
pub fn run(_args: &Args, _common: &Common) -> Result<Exit, Failed> {
    Err(Problem::new("kiln::call::not_there", "`kiln plan` is not there yet").into())
}
