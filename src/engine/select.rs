//! Part of a plan.

use std::collections::BTreeSet;

use crate::base::{Problem, Result};
use crate::plan::{Keep, Plan, StageId};

/// The stages `wanted` and all they need; those wanted are kept. The whole plan if none is wanted.
pub fn select(mut plan: Plan, wanted: &[String]) -> Result<Plan> {
    if wanted.is_empty() {
        return Ok(plan);
    }
    for name in wanted {
        let Some(stage) = plan.stages.iter_mut().find(|stage| stage.id.0 == *name) else {
            let known: Vec<&str> = plan.stages.iter().map(|stage| stage.id.0.as_str()).collect();
            return Err(Problem::new("kiln::call::unknown_stage", format!("the plan has no stage `{name}`"))
                .help(format!("it has: {}", known.join(", "))));
        };
        stage.keep = Keep::All;
    }
    let mut needed: BTreeSet<StageId> = wanted.iter().cloned().map(StageId).collect();
    // From the end, so that a stage is known to be needed before its own inputs are looked at.
    for stage in plan.stages.iter().rev() {
        if needed.contains(&stage.id) {
            needed.extend(stage.dependencies().cloned());
        }
    }
    plan.stages.retain(|stage| needed.contains(&stage.id));
    Ok(plan)
}
