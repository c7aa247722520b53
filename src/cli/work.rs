//! `kiln work`: runs one action. kiln starts it as a child process.

use std::path::PathBuf;

use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::execute;
use crate::store::Disk;

/// Which action.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The action as JSON, including the windows of its inputs
    #[arg(value_name = "ACTION.json")]
    action: PathBuf,
    /// File to write the outputs, or the problem, to
    #[arg(long, value_name = "FILE")]
    result: PathBuf,
    /// Exit when this process exits
    #[arg(long, value_name = "PID")]
    parent: Option<u32>,
}

/// Runs the subcommand.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    if let Some(parent) = args.parent {
        execute::die_with_parent(parent)?;
    }
    execute::work(
        Disk::open(&common.cache),
        stages,
        &args.action,
        &args.result,
    )?;
    Ok(Exit::Done)
}
