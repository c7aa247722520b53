//! `kiln show`: draws the stages of a plan.

use super::{Common, Exit, Failed, PlanArgs};
use crate::base::Problem;

/// What to show.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
}

/// Runs the subcommand.
pub fn run(_args: &Args, _common: &Common) -> Result<Exit, Failed> {
    Err(Problem::new("kiln::call::not_there", "`kiln show` is not there yet").into())
}
