//! `kiln cache`: looks into the local cache.

use super::{Common, Exit, Failed};
use crate::base::Problem;

/// What to do with it.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Count blobs, results and bytes
    Stats,
    /// Hash every blob again and set damaged ones aside
    Verify,
}

/// Runs the subcommand.
pub fn run(args: &Args, _common: &Common) -> Result<Exit, Failed> {
    let name = match args.action {
        Action::Stats => "stats",
        Action::Verify => "verify",
    };
    Err(Problem::new("kiln::call::not_there", format!("`kiln cache {name}` is not there yet")).into())
}
