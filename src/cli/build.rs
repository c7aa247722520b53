//! `kiln build`: builds what a plan asks for.

use super::{Common, Exit, Failed, PlanArgs};
use crate::base::Problem;

/// What to build.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Write artifacts to DIR/STAGE/ instead of out/PLAN/STAGE/
    #[arg(long, value_name = "DIR")]
    out: Option<std::path::PathBuf>,
    /// How many threads may be busy [default: all]
    #[arg(long, value_name = "N")]
    jobs: Option<std::num::NonZeroU32>,
}

/// Runs the subcommand.
pub fn run(_args: &Args, _common: &Common) -> Result<Exit, Failed> {
    Err(Problem::new("kiln::call::not_there", "`kiln build` is not there yet").into())
}
