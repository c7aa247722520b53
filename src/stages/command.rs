//! `command`: runs any program of this machine as a stage, in a new folder with copies of its
//! inputs.
//!
//! The output is of kind `file`, for example a GGUF or a text. A program cannot produce other kinds
//! of artifacts, since these need facts (shapes, encodings) that only kiln's stages write.

mod folder;
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::action::{
    ANY, Demand, InputSpec, InputStage, Inputs, Isolation, Job, Order, Outputs, ParamProblem, Part,
    PartName, Proof, StageSpec, TypedStage,
};
use crate::base::{CanonJson, Code, Digest, Problem, Result, parse_bytes};
use folder::Folder;

/// Prefix of a program that is itself an input.
const INPUTS: &str = "inputs/";

/// The stage.
pub struct Command;

/// The stage's table in the plan.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The program: an absolute path, or `inputs/STAGE/PART` for a file that a stage of `inputs`
    /// outputs.
    program: String,
    /// Its arguments, passed as they are, without a shell.
    #[serde(default)]
    args: Vec<String>,
    /// Its environment. Nothing is inherited; kiln adds `TMPDIR`.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// The files that it must leave in `outputs/`; `NAME/` stands for all files below a folder.
    outputs: Vec<String>,
    /// Absolute paths of the files and folders that it reads besides itself. Their bytes are part
    /// of the cache key.
    #[serde(default)]
    tools: Vec<String>,
    /// Memory that it needs, until its measured peak is known. Not part of the cache key.
    #[serde(
        rename = "memory",
        default = "default_memory",
        deserialize_with = "size"
    )]
    #[schemars(with = "String", extend("default" = MEMORY))]
    memory_bytes: u64,
    /// Threads that it keeps busy. Not part of the cache key.
    #[serde(default = "one")]
    threads: NonZeroU32,
    /// What to do if the program or a file of `tools` is missing, for the error message. Not part
    /// of the cache key.
    #[serde(default)]
    install: Option<String>,
}

/// One run of a program: what it is called with, and the digests of the files of this machine that
/// it reads.
#[derive(Serialize, Deserialize)]
pub struct Call {
    program: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    outputs: Vec<String>,
    files: BTreeMap<String, Digest>,
}

/// Default of `memory`.
const MEMORY: &str = "1GB";
const MEMORY_BYTES: u64 = 1_000_000_000;

fn default_memory() -> u64 {
    MEMORY_BYTES
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    parse_bytes(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

impl TypedStage for Command {
    type Params = Params;
    type Order = Call;
    const SPEC: StageSpec = StageSpec {
        kind: "command",
        version: 1,
        summary: "any program of this machine, its files as output",
        output: "file",
        inputs: &[InputSpec {
            name: "inputs",
            meaning: "Stages of any kind. Their parts are copied to `inputs/STAGE/PART`.",
            accepts: &[ANY],
            required: false,
            many: true,
        }],
        params: &[
            "program", "args", "env", "outputs", "tools", "memory", "threads", "install",
        ],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn check(params: &Params, given: &[InputStage]) -> Vec<ParamProblem> {
        let problem = |path: String, message: String, help: &str| ParamProblem {
            path,
            problem: Problem::new(Code::PlanParameter, message).help(help),
        };
        let mut problems = vec![];
        if let Some((why, help)) = bad_program(&params.program, InputStage::fills(given, "inputs"))
        {
            problems.push(problem(
                "program".into(),
                format!("`{}` {why}", params.program),
                help,
            ));
        }
        if params.outputs.is_empty() {
            let help =
                "name the files that the program writes into `outputs/`; a folder ends in `/`";
            problems.push(problem(
                "outputs".into(),
                "a command needs at least one output".into(),
                help,
            ));
        }
        for (index, output) in params.outputs.iter().enumerate() {
            if let Err(wrong) = PartName::new(output.strip_suffix('/').unwrap_or(output)) {
                let help = "write its path below `outputs/`: `model.dlc`, `layers/`";
                problems.push(problem(format!("outputs/{index}"), wrong.message, help));
            }
        }
        for (index, tool) in params
            .tools
            .iter()
            .enumerate()
            .filter(|(_, tool)| !Path::new(tool).is_absolute())
        {
            let help = "write the absolute path; outputs of other stages belong to `inputs`";
            problems.push(problem(
                format!("tools/{index}"),
                format!("`{tool}` is not an absolute path"),
                help,
            ));
        }
        for name in params
            .env
            .keys()
            .filter(|name| name.is_empty() || name.contains('='))
        {
            let help = "the name of a variable is not empty and holds no `=`";
            problems.push(problem(
                "env".into(),
                format!("`{name}` cannot name a variable"),
                help,
            ));
        }
        problems
    }

    fn files(params: &Params) -> Result<Vec<PathBuf>> {
        let mut files = vec![];
        for file in params.files() {
            let file = PathBuf::from(file);
            if let Err(error) = fs::metadata(&file) {
                let help = params.install.as_deref().unwrap_or(
                    "install it, or set its path: if the plan has a variable for it, with \
                     `--set NAME=PATH`",
                );
                let problem = Problem::new(
                    Code::ToolMissing,
                    format!("{} is not there", file.display()),
                );
                return Err(problem.because(&error).help(help));
            }
            files.push(file);
        }
        Ok(files)
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Call>>> {
        let mut files = BTreeMap::new();
        for path in params.files() {
            files.insert(path.to_string(), inputs.file(Path::new(path))?);
        }
        let Params {
            program,
            args,
            env,
            outputs,
            memory_bytes,
            threads,
            ..
        } = params;
        let program_input = program.strip_prefix(INPUTS).map(String::from);
        let demand = Demand {
            memory_bytes,
            threads: threads.get(),
            isolation: Isolation::Process,
        };
        let mut order = Order::new(
            "",
            Call {
                program,
                args,
                env,
                outputs,
                files,
            },
        )
        .demand(demand);
        for (stage, manifest) in inputs.many("inputs") {
            for (name, part) in &manifest.parts {
                // Without facts, since the program does not see them.
                let part = Part {
                    content: part.content,
                    facts: CanonJson::default(),
                };
                order = order.input(format!("{stage}/{name}"), &part);
            }
        }
        if let Some(name) = program_input
            && !order.inputs.contains_key(&name)
        {
            let names: Vec<&str> = order.inputs.keys().take(8).map(String::as_str).collect();
            return Err(
                Problem::new(Code::CommandProgram, format!("no input is called `{name}`")).help(
                    format!(
                        "there are {} inputs: {} ...",
                        order.inputs.len(),
                        names.join(", ")
                    ),
                ),
            );
        }
        Ok(vec![order])
    }

    fn proof(call: &Call) -> Proof {
        Proof::Outputs(call.outputs.clone())
    }

    fn run(call: Call, job: &Job) -> Result<Outputs> {
        let folder = Folder::create(&call, job)?;
        process::run(&call, &folder)?;
        folder.store_outputs(&call, job)
    }
}

impl Params {
    /// The files and folders of this machine that the program reads.
    fn files(&self) -> Vec<&str> {
        let mut files = vec![];
        if !self.program.starts_with(INPUTS) {
            files.push(self.program.as_str());
        }
        files.extend(self.tools.iter().map(String::as_str));
        files
    }
}

/// What is wrong with `program`, and what to write instead.
fn bad_program(program: &str, has_inputs: bool) -> Option<(&'static str, &'static str)> {
    if Path::new(program).is_absolute() {
        return None;
    }
    match program.strip_prefix(INPUTS) {
        Some(_) if !has_inputs => Some((
            "is an input, but there are none",
            "name the stage that outputs it in `inputs`",
        )),
        Some(part) if PartName::new(part).is_err() => {
            Some(("names no input", "write `inputs/STAGE/PART`"))
        }
        Some(_) => None,
        None if program.contains('/') => Some((
            "is not an absolute path",
            "write the whole path, or `inputs/STAGE/PART` for an output of a stage",
        )),
        None => Some((
            "is a name, not a path",
            "write its whole path, like `/usr/bin/python3`: which program a name means depends on \
             the machine",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_memory_is_the_documented_one() {
        assert_eq!(parse_bytes(MEMORY), Ok(MEMORY_BYTES));
    }
}
