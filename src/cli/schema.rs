//! `kiln schema`: prints the JSON Schema of plans, for completion and checks in editors, or the
//! same parameters as Markdown tables.

use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::plan::{self, Tables};

/// In which format.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print the inputs and parameters of all stage kinds as Markdown tables
    #[arg(long)]
    markdown: bool,
}

/// Prints the schema or the tables.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    if args.markdown {
        common.print(&markdown_text(&plan::tables(stages)));
    } else {
        common.print(&format!("{:#}\n", plan::schema(stages)));
    }
    Ok(Exit::Done)
}

fn markdown_text(tables: &[Tables]) -> String {
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
