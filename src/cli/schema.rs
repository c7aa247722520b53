//! `kiln schema`: prints the JSON Schema of a plan, by which an editor completes and checks it; or
//! the same parameters as tables for people.

use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::plan::{self, Tables};

/// In which form.
#[derive(clap::Args)]
pub struct Args {
    /// Print the inputs and parameters of all stage kinds as Markdown tables instead
    #[arg(long)]
    markdown: bool,
}

/// Prints it.
pub fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    if args.markdown {
        common.print(&markdown(&plan::tables(stages)));
    } else {
        common.print(&format!("{:#}\n", plan::schema(stages)));
    }
    Ok(Exit::Done)
}

fn markdown(tables: &[Tables]) -> String {
    let mut text = "# Stage kinds\n".to_string();
    for Tables {
        name,
        summary,
        markdown,
    } in tables
    {
        text += &format!("\n## {name}\n\n{summary}\n\n{markdown}");
    }
    text
}
