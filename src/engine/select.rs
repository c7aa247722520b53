//! Selects a part of a plan.

use std::collections::BTreeSet;

use crate::base::{Code, Problem, Result, hint};
use crate::plan::{Keep, Plan, PlannedStage, StageId};

/// The stages `names` and all that they depend on; the named ones are kept. The name of a stage in
/// the plan selects all its instances. Without names, all stages that are not optional.
pub fn select(mut plan: Plan, names: &[String]) -> Result<Plan> {
    for name in names {
        if !plan.stages.iter().any(|stage| has_name(stage, name)) {
            return Err(unknown_stage(&plan, name));
        }
    }
    let mut needed: BTreeSet<StageId> = BTreeSet::new();
    for stage in &mut plan.stages {
        if names.is_empty() {
            if !stage.optional {
                needed.insert(stage.id.clone());
            }
        } else if names.iter().any(|name| has_name(stage, name)) {
            stage.keep = Keep::All;
            needed.insert(stage.id.clone());
        }
    }
    // Backwards, so that all consumers of a stage are handled before the stage.
    for stage in plan.stages.iter().rev() {
        if needed.contains(&stage.id) {
            needed.extend(stage.dependencies().cloned());
        }
    }
    plan.stages.retain(|stage| needed.contains(&stage.id));
    Ok(plan)
}

fn has_name(stage: &PlannedStage, name: &str) -> bool {
    stage.id.0 == name || stage.name == name
}

fn unknown_stage(plan: &Plan, name: &str) -> Problem {
    let mut names = vec![];
    for stage in &plan.stages {
        names.push(stage.id.0.as_str());
    }
    Problem::new(
        Code::CallUnknownStage,
        format!("the plan has no stage `{name}`"),
    )
    .help(hint(name, "its stages", names))
}
