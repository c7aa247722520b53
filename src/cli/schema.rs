//! `kiln schema`: prints the JSON Schema of a plan, by which an editor completes and checks it.

use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::plan;

/// Prints it.
pub fn run(common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    common.print(&format!("{:#}\n", plan::schema(stages)));
    Ok(Exit::Done)
}
