//! Floor 6: puts everything together; one file a subcommand.

mod artifacts;
mod build;
mod cache;
mod check;
mod common;
mod completions;
mod doctor;
mod exit;
mod explain;
mod github;
mod init;
mod inspect;
mod machine;
mod man;
mod output;
mod places;
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

/// Fires GGUF language models into Qualcomm NPU context binaries, by a declarative plan.
#[derive(Parser)]
#[command(name = "kiln", version, after_help = format!("{FIRST_STEPS}\n\n{}", exit::HELP))]
pub struct Call {
    #[command(subcommand)]
    command: Command,
    /// What every subcommand understands.
    #[command(flatten)]
    pub common: Common,
}

const FIRST_STEPS: &str = "\
First steps:
  kiln doctor                      what this machine lacks
  kiln init hf:OWNER/REPO/FILE     a plan for that model
  kiln build plans/NAME.toml       what the plan asks for, in out/NAME/";

#[derive(Subcommand)]
enum Command {
    /// Write a plan to start from, for one model
    Init(init::Args),
    /// Build what a plan asks for
    Build(build::Args),
    /// Say everything that is wrong with a plan
    Check(check::Args),
    /// Say what a build would run or skip, and why; run nothing
    Plan(plan::Args),
    /// Say why a part would run again, with old and new value
    Explain(explain::Args),
    /// Show a recorded build again, or make reports of it
    Replay(replay::Args),
    /// Draw the stages of a plan
    Show(show::Args),
    /// Print the JSON Schema of a plan, for editors, or its parameters as tables
    Schema(schema::Args),
    /// Describe a GGUF, ONNX, DLC or context binary
    Inspect(inspect::Args),
    /// Say what this machine has and lacks, and the command that mends it
    Doctor(doctor::Args),
    /// Check that the files of a build are those of the lock beside the plan; exit code 3 if not
    Verify(records::VerifyArgs),
    /// Look into the local cache
    Cache(cache::Args),
    /// Print a script that completes calls of kiln: source <(kiln completions bash)
    Completions(completions::Args),
    /// Print the manual page, or write one for every subcommand
    Man(man::Args),
    /// Run one action: what child processes do
    #[command(hide = true)]
    Work(work::Args),
}

impl Call {
    /// Reads this program's call. Help and mistakes end the program, in the colours that the call
    /// asks for.
    pub fn read() -> Call {
        let words = std::env::args_os;
        let usage = || Call::command().color(common::color_of(words()));
        let matches = usage()
            .try_get_matches_from(words())
            .unwrap_or_else(|error| {
                // A mistake quotes the words of the call: it is found again in words that a
                // terminal may have.
                let words = words().map(|word| shown_line(&word.to_string_lossy()));
                match usage().try_get_matches_from(words) {
                    Err(again) if again.kind() == error.kind() => again.exit(),
                    _ => {
                        let _ = write!(stderr(), "{}", shown(&error.to_string()));
                        std::process::exit(error.exit_code())
                    }
                }
            });
        Call::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// All that people may call: without the hidden subcommand, which completions would offer.
    fn shown() -> Usage {
        let all = Call::command();
        let shown = all
            .get_subcommands()
            .filter(|command| !command.is_hide_set());
        Common::augment_args(Usage::new("kiln").version(env!("CARGO_PKG_VERSION")))
            .about(all.get_about().cloned().unwrap_or_default())
            .after_help(all.get_after_help().cloned().unwrap_or_default())
            .subcommands(shown.cloned().collect::<Vec<_>>())
    }

    /// Does what the call asks, with the stage kinds that there are.
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
            Command::Inspect(args) => inspect::run(args, common),
            Command::Doctor(args) => doctor::run(args, common),
            Command::Verify(args) => records::verify(args, common, stages),
            Command::Cache(args) => cache::run(args, common, stages),
            Command::Completions(args) => Ok(completions::run(args, common)),
            Command::Man(args) => man::run(args, common),
            Command::Work(args) => work::run(args, common, stages),
        }
    }
}
