//! `kiln check`: says everything that is wrong with a plan, and what cannot be made of its models,
//! where they lie on this machine.

use std::fs::File;
use std::path::Path;

use serde_json::json;

use super::inspect::with_headers;
use super::{Common, Exit, Failed, PlanArgs};
use crate::action::Registry;
use crate::base::{Problem, Result, open_file};
use crate::model::decoder::arch::{model_facts, model_warnings};
use crate::model::gguf::Gguf;
use crate::plan::{Plan, PlannedStage};

/// The kinds that read or write text, which want a tokenizer that kiln knows.
const OF_TEXT: [&str; 3] = ["reference", "calibrate", "package"];

/// Which plan.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
}

/// Checks the plan.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let (plan, texts) = args.plan.load_with_texts(stages)?;
    let Found { problems, warnings } = models(&plan);
    if !problems.is_empty() {
        return Err(Failed {
            problems,
            source: Some(texts),
        });
    }
    let answer = match common.json {
        true => {
            json!({"plan": plan.name, "stages": plan.stages.len(), "problems": 0, "warnings": warnings}).to_string()
        }
        false => {
            let warnings: String = warnings.iter().map(|warning| format!("\nwarning: {warning}")).collect();
            format!("{}: {} stages, no problems{warnings}", plan.name, plan.stages.len())
        }
    };
    common.print(&format!("{answer}\n"));
    Ok(Exit::Done)
}

/// What is known of models before anything runs.
#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

/// Looks into every model of the plan whose files are at hand.
fn models(plan: &Plan) -> Found {
    let mut found = Found::default();
    for model in plan.stages.iter().filter(|stage| stage.kind == "inspect") {
        let Some(mut files) = files(plan, model) else {
            continue;
        };
        let consumes_it = |stage: &&PlannedStage| {
            stage
                .slots
                .get("model")
                .is_some_and(|producers| producers.contains(&model.id))
        };
        let consumers: Vec<&PlannedStage> = plan.stages.iter().filter(consumes_it).collect();
        match with_headers(&mut files, |gguf| look(gguf, &consumers)) {
            Ok(warnings) => found.warnings.extend(warnings),
            Err(problem) if problem.labels.is_empty() => {
                let problem = problem.at(model.at.clone(), "this stage would fail");
                found.problems.push(problem);
            }
            Err(problem) => found.problems.push(problem),
        }
    }
    found
}

/// The files of this machine that `model` is read from, if they all are there.
fn files(plan: &Plan, model: &PlannedStage) -> Option<Vec<File>> {
    let fetched = model.slots.get("gguf")?.iter().map(|producer| {
        let fetch = plan
            .stages
            .iter()
            .find(|stage| stage.id == *producer && stage.kind == "fetch")?;
        open_file(Path::new(
            fetch.params["url"].as_str()?.strip_prefix("file:")?,
        ))
        .ok()
    });
    fetched
        .collect::<Option<Vec<File>>>()
        .filter(|files| !files.is_empty())
}

/// Refuses a model that `consumers` cannot use. Yields warnings.
fn look(gguf: &Gguf, consumers: &[&PlannedStage]) -> Result<Vec<String>> {
    let facts = model_facts(gguf)?;
    // What is optional may never be asked for.
    let is_of_text =
        |stage: &&&PlannedStage| !stage.optional && OF_TEXT.contains(&stage.kind.as_str());
    if let Some(of_text) = consumers.iter().find(is_of_text)
        && let Some(problem) = gguf.tokenizer_problem()
    {
        let what = format!("the stage `{}` would fail", of_text.id.0);
        return Err(problem.within(what).at(of_text.at.clone(), "this stage"));
    }
    let too_long = consumers.iter().filter_map(|stage| {
        let context = stage.params.get("context")?.as_u64()?;
        (context > u64::from(facts.context_length)).then(|| {
            format!(
                "`{}` has a context of {context}, the model was made for {}",
                stage.id.0, facts.context_length
            )
        })
    });
    Ok(too_long.chain(model_warnings(gguf, &facts)).collect())
}
