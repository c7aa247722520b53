//! `kiln check`: says everything that is wrong with a plan.

use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;

/// Which plan.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
}

/// Checks the plan.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let plan = args.plan.load(stages)?;
    let answer = match common.json {
        true => serde_json::json!({"plan": plan.name, "stages": plan.stages.len(), "problems": 0}).to_string(),
        false => format!("{}: {} stages, no problems", plan.name, plan.stages.len()),
    };
    common.print(&format!("{answer}\n"));
    Ok(Exit::Done)
}
