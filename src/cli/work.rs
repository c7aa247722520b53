//! `kiln work`: runs one action; what child processes do.

use std::path::PathBuf;

use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::execute;
use crate::store::Disk;

/// What to work.
#[derive(clap::Args)]
pub struct Args {
    /// The action as JSON, windows included
    #[arg(value_name = "ACTION.json")]
    action: PathBuf,
    /// Where its outputs, or its problem, are written
    #[arg(long, value_name = "FILE")]
    result: PathBuf,
    /// End when this process does
    #[arg(long, value_name = "PID")]
    parent: Option<u32>,
}

/// Runs the subcommand.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
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
