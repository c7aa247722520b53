//! `kiln schema`: prints the JSON Schema of a plan, by which an editor completes and checks it.

use super::{Common, Exit, Failed};
use crate::{plan, stages};

/// Prints it.
pub fn run(common: &Common) -> Result<Exit, Failed> {
    common.print(&format!("{:#}\n", plan::schema(&stages::all())));
    Ok(Exit::Done)
}
