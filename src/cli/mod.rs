//! The command line: one file per subcommand, and what the subcommands share.

mod artifacts;
mod build;
mod cache;
mod check;
mod columns;
mod common;
mod completions;
mod doctor;
mod exit;
mod explain;
mod foresee;
mod github;
mod init;
mod inspect;
mod machine;
mod man;
mod output;
mod output_paths;
mod plan;
mod records;
mod replay;
mod reports;
mod schema;
mod screen;
mod session;
mod show;
mod work;

use std::io::{Write, stderr};

use clap::{Args as _, Command as Usage, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use common::{Common, Failed, PlanArgs};
pub use exit::Exit;

use crate::action::Registry;
use crate::base::{shown, shown_line};

/// Build Qualcomm NPU context binaries from GGUF language models, as a plan describes.
#[derive(Parser)]
#[command(name = "kiln", version, after_help = format!("{FIRST_STEPS}\n\n{}", exit::HELP))]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Options of every subcommand.
    #[command(flatten)]
    pub common: Common,
}

const FIRST_STEPS: &str = "\
First steps:
  kiln doctor                      check this machine
  kiln init hf:OWNER/REPO/FILE     write a plan for a model
  kiln build plans/NAME.toml       build it and write the artifacts to out/NAME/";

#[derive(Subcommand)]
enum Command {
    /// Write a starter plan for a model
    Init(init::Args),
    /// Build a plan and write its artifacts
    Build(build::Args),
    /// Check a plan and report all its problems
    Check(check::Args),
    /// Show what a build would run, and why; runs nothing
    Plan(plan::Args),
    /// Show why a part would run, with old and new values, and its inputs
    Explain(explain::Args),
    /// Show a logged build again, or write reports of it
    Replay(replay::Args),
    /// Print the stages of a plan as text or as a graph
    Show(show::Args),
    /// Print the JSON Schema of plans, for editors, or parameter tables in Markdown
    Schema(schema::Args),
    /// Describe a GGUF, ONNX, DLC, context binary or quantization report
    Inspect(inspect::Args),
    /// Check this machine, and show how to fix what is missing
    Doctor(doctor::Args),
    /// Compare the artifacts of a build with its lock file; exit code 3 if they differ
    Verify(records::VerifyArgs),
    /// Show, check, clean up, export and import the local cache
    Cache(cache::Args),
    /// Print a shell completion script, to be used as: source <(kiln completions bash)
    Completions(completions::Args),
    /// Print the manual page, or write one page for each subcommand
    Man(man::Args),
    /// Run one action in this process; kiln starts such child processes itself
    #[command(hide = true)]
    Work(work::Args),
}

impl Cli {
    /// Parses the command line of this process. Prints help or a usage error and exits, if that is
    /// the outcome; `--color` applies to these texts, too.
    pub fn read() -> Cli {
        let usage = Cli::command().color(common::color_of(std::env::args_os()));
        let matches = match usage.clone().try_get_matches_from(std::env::args_os()) {
            Ok(matches) => matches,
            Err(error) => exit_with_usage(usage, &error),
        };
        match Cli::from_arg_matches(&matches) {
            Ok(cli) => cli,
            Err(error) => error.exit(),
        }
    }

    /// The command without hidden subcommands, for completion scripts and manual pages.
    fn public_command() -> Usage {
        let all = Cli::command();
        let mut public = Common::augment_args(Usage::new("kiln"))
            .version(env!("CARGO_PKG_VERSION"))
            .about(all.get_about().cloned().unwrap_or_default())
            .after_help(all.get_after_help().cloned().unwrap_or_default());
        for command in all.get_subcommands() {
            if !command.is_hide_set() {
                public = public.subcommand(command.clone());
            }
        }
        public
    }

    /// Runs the subcommand, with the stage kinds of `stages`.
    pub fn run(&self, stages: &Registry) -> Result<Exit, Failed> {
        let common = &self.common;
        match &self.command {
            Command::Init(args) => init::run(args, common, stages),
            Command::Build(args) => build::run(args, common, stages),
            Command::Check(args) => check::run(args, common, stages),
            Command::Plan(args) => plan::run(args, common, stages),
            Command::Explain(args) => explain::run(args, common, stages),
            Command::Replay(args) => replay::run(args, common),
            Command::Show(args) => show::run(args, common, stages),
            Command::Schema(args) => schema::run(args, common, stages),
            Command::Inspect(args) => inspect::run(args, common, stages),
            Command::Doctor(args) => doctor::run(args, common),
            Command::Verify(args) => records::verify(args, common, stages),
            Command::Cache(args) => cache::run(args, common, stages),
            Command::Completions(args) => Ok(completions::run(args, common)),
            Command::Man(args) => man::run(args, common),
            Command::Work(args) => work::run(args, common, stages),
        }
    }
}

/// Prints help or a usage error without control characters of the command line, and exits.
fn exit_with_usage(usage: Usage, error: &clap::Error) -> ! {
    // The error quotes arguments. Parsing sanitized arguments gives the same error, in colours.
    let mut arguments = vec![];
    for argument in std::env::args_os() {
        arguments.push(shown_line(&argument.to_string_lossy()));
    }
    match usage.try_get_matches_from(arguments) {
        Err(sanitized) if sanitized.kind() == error.kind() => sanitized.exit(),
        _ => {
            let _ = write!(stderr(), "{}", shown(&error.to_string()));
            std::process::exit(error.exit_code())
        }
    }
}
