//! `kiln check`: reports all problems of a plan, and of its models if their files are on this
//! machine.

use std::fs::File;

use serde_json::{Value, json};

use super::foresee::refusal;
use super::inspect::with_headers;
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::artifact::model::described;
use crate::base::{Problem, Result, open_file};
use crate::model::decoder::arch::{model_facts, model_warnings};
use crate::model::gguf::Gguf;
use crate::plan::{Plan, PlannedStage};

/// Which plan.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    plan: PlanArgs,
}

/// Checks the plan.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let (plan, texts) = args.plan.load_with_texts(stages)?;
    let Findings { problems, warnings } = check_models(&plan, stages);
    if !problems.is_empty() {
        return Err(Failed {
            problems,
            source: Some(texts),
        });
    }
    let count = plan.stages.len();
    let text = if common.json {
        let line = json!({"plan": plan.name, "stages": count, "problems": 0, "warnings": warnings});
        format!("{line}\n")
    } else {
        let mut text = format!("{}: {count} stages, no problems\n", plan.name);
        for warning in warnings {
            text += &format!("warning: {warning}\n");
        }
        text
    };
    common.print(&text);
    Ok(Exit::Done)
}

/// Problems and warnings of models.
#[derive(Default)]
struct Findings {
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

/// Checks every model of the plan whose files are on this machine.
fn check_models(plan: &Plan, stages: &Registry) -> Findings {
    let mut findings = Findings::default();
    for model in &plan.stages {
        if model.kind != "inspect" {
            continue;
        }
        let Some(mut files) = local_files(plan, model) else {
            continue;
        };
        let consumers = consumers_of(plan, model);
        match with_headers(&mut files, |gguf| check_model(gguf, &consumers, stages)) {
            Ok(found) => {
                findings.problems.extend(found.problems);
                findings.warnings.extend(found.warnings);
            }
            Err(problem) => {
                let problem = problem.at(model.at.clone(), "this stage would fail");
                findings.problems.push(problem);
            }
        }
    }
    findings
}

/// The stages that have the stage `model` in their slot `model`.
fn consumers_of<'a>(plan: &'a Plan, model: &PlannedStage) -> Vec<&'a PlannedStage> {
    let mut consumers = vec![];
    for stage in &plan.stages {
        if let Some(producers) = stage.slots.get("model")
            && producers.contains(&model.id)
        {
            consumers.push(stage);
        }
    }
    consumers
}

/// The files of the GGUF that `model` reads; `None` if one of them is not on this machine.
fn local_files(plan: &Plan, model: &PlannedStage) -> Option<Vec<File>> {
    let mut files = vec![];
    for producer in model.slots.get("gguf")? {
        let stage = plan.stages.iter().find(|stage| stage.id == *producer)?;
        if stage.kind != "fetch" {
            return None;
        }
        let path = stage.params["url"].as_str()?.strip_prefix("file:")?;
        files.push(open_file(path.as_ref()).ok()?);
    }
    if files.is_empty() {
        return None;
    }
    Some(files)
}

/// What the `consumers` of a model cannot do with it, and warnings. Fails if kiln cannot build it.
fn check_model(gguf: &Gguf, consumers: &[&PlannedStage], stages: &Registry) -> Result<Findings> {
    let facts = model_facts(gguf)?;
    let mut findings = Findings {
        problems: vec![],
        warnings: model_warnings(gguf, &facts),
    };
    let model = described(&facts, &gguf.tokenizer())?;
    for stage in consumers {
        // An optional stage may never be built.
        if !stage.optional
            && let Some(problem) = refusal(&stage.kind, &stage.params, &model, stages)
        {
            let message = format!("the stage `{}` would fail", stage.id.0);
            let problem = problem.within(message).at(stage.at.clone(), "this stage");
            findings.problems.push(problem);
        }
        if let Some(context) = stage.params.get("context").and_then(Value::as_u64)
            && context > u64::from(facts.context_length)
        {
            findings.warnings.push(format!(
                "`{}` has a context of {context} tokens, the model was trained for {}",
                stage.id.0, facts.context_length
            ));
        }
    }
    Ok(findings)
}
