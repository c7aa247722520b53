//! Part of a plan.

use std::collections::BTreeSet;

use crate::base::{Code, Problem, Result, hint};
use crate::plan::{Keep, Plan, PlannedStage, StageId};

/// The stages `wanted` and all they need; those wanted are kept. A name of the plan wants all its
/// instances. If none is wanted, all that is not optional.
pub fn select(mut plan: Plan, wanted: &[String]) -> Result<Plan> {
    let is = |stage: &PlannedStage, name: &String| stage.id.0 == *name || stage.name == *name;
    if let Some(name) = wanted
        .iter()
        .find(|name| !plan.stages.iter().any(|stage| is(stage, name)))
    {
        let known: Vec<&str> = plan
            .stages
            .iter()
            .map(|stage| stage.id.0.as_str())
            .collect();
        return Err(Problem::new(
            Code::CallUnknownStage,
            format!("the plan has no stage `{name}`"),
        )
        .help(hint(name, "its stages", known)));
    }
    let mut needed: BTreeSet<StageId> = BTreeSet::new();
    for stage in plan
        .stages
        .iter_mut()
        .filter(|stage| wanted.iter().any(|name| is(stage, name)))
    {
        stage.keep = Keep::All;
        needed.insert(stage.id.clone());
    }
    if wanted.is_empty() {
        needed.extend(
            plan.stages
                .iter()
                .filter(|stage| !stage.optional)
                .map(|stage| stage.id.clone()),
        );
    }
    // From the end, so that a stage is known to be needed before its own inputs are looked at.
    for stage in plan.stages.iter().rev() {
        if needed.contains(&stage.id) {
            needed.extend(stage.dependencies().cloned());
        }
    }
    plan.stages.retain(|stage| needed.contains(&stage.id));
    Ok(plan)
}
