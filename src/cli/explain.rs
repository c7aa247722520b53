//! `kiln explain`: says why a part would run again.

use super::{Common, Exit, Failed, PlanArgs};
use crate::base::Problem;

/// What to explain.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// A stage or a part of it: `weights`, `weights/blk.0.attn_q.weight`
    part: Option<String>,
}

/// Runs the subcommand.
pub fn run(_args: &Args, _common: &Common) -> Result<Exit, Failed> {
    Err(Problem::new("kiln::call::not_there", "`kiln explain` is not there yet").into())
}
