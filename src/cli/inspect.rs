//! `kiln inspect`: describes a file, whatever it is called: its first bytes tell what it is.

mod gguf;
mod onnx;

use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;

use super::{Common, Exit, Failed};
use crate::base::{Context, Problem, Result};
use crate::model::gguf::MAGIC as GGUF;

/// What to inspect.
#[derive(clap::Args)]
pub struct Args {
    /// The file
    file: PathBuf,
    /// List the tensors too
    #[arg(long)]
    tensors: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args, common: &Common) -> Result<Exit, Failed> {
    let text =
        describe(args, common.json).map_err(|p| p.within(format!("failed to inspect {}", args.file.display())))?;
    common.print(&text);
    Ok(Exit::Done)
}

/// What there is to say about the file: lines for people, or one of JSON.
fn describe(args: &Args, json: bool) -> Result<String> {
    let mut file = File::open(&args.file).context("kiln::call::unreadable", || "open it".into())?;
    let mut magic = vec![];
    (&file).take(16).read_to_end(&mut magic).context("kiln::call::unreadable", || "read it".into())?;
    file.rewind().context("kiln::call::unreadable", || "rewind it".into())?;
    match magic.as_slice() {
        start if start.starts_with(&GGUF) => gguf::describe(&mut file, args.tensors, json),
        start if onnx::is_onnx(start) => onnx::describe(&file, json),
        start => Err(Problem::new(
            "kiln::call::format",
            format!("unknown format: it begins with \"{}\"", start.escape_ascii()),
        )
        .help("kiln describes GGUF and ONNX files")),
    }
}
