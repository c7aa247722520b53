//! `kiln inspect`: describes a file. The format is recognized by the first bytes, not by the name.

mod device;
mod gguf;
mod onnx;
mod quant_report;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) use gguf::{open_model_files, with_headers};

use super::session::PROGRAM;
use super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::base::{Code, Context, Problem, Result, head, open_file};
use crate::model::gguf::MAGIC as GGUF;
use crate::model::quant_report::QuantReport;
use crate::stages::fetch::what_else;

/// What to inspect.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The file to describe
    file: PathBuf,
    /// Also list the tensors
    #[arg(long)]
    tensors: bool,
    /// Folder of libQnnSystem.so, which reads context binaries and DLCs [default: the one that a
    /// build fetched into the cache]
    #[arg(long, value_name = "DIR", env = "KILN_QNN")]
    qnn: Option<PathBuf>,
}

/// Prints the description.
pub(super) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    if std::env::var_os(IS_CHILD).is_none() && needs_vendor_library(&args.file) {
        return Ok(run_in_child(&args.file)?);
    }
    match describe(args, common, stages) {
        Ok(text) => common.print(&text),
        Err(problem) => {
            let message = format!("failed to inspect {}", args.file.display());
            return Err(problem.within(message).into());
        }
    }
    Ok(Exit::Done)
}

/// Bytes at the beginning of a file that are enough to recognize its format.
pub(in crate::cli) const MAGIC_BYTES: u64 = 16;

/// The problem of a file of another format, which begins with `start`.
pub(in crate::cli) fn unsupported_format(path: &Path, start: &[u8]) -> Problem {
    if let Some((what, help)) = what_else(&path.to_string_lossy(), path) {
        return Problem::new(Code::CallFormat, format!("it is {what}")).help(help);
    }
    let message = format!(
        "unknown format: it begins with \"{}\"",
        start.escape_ascii()
    );
    Problem::new(Code::CallFormat, message)
        .help("kiln describes GGUF, ONNX, DLC, context binary and quantization report files")
}

/// Environment variable of the child process that reads the file.
const IS_CHILD: &str = "KILN_INSPECT_HERE";

/// Whether Qualcomm's library reads the file. It may crash on damaged files.
fn needs_vendor_library(path: &Path) -> bool {
    match head(path, MAGIC_BYTES) {
        Ok(start) => device::is_context_binary(&start) || device::is_dlc(&start),
        Err(_) => false,
    }
}

/// Runs the same command in a child process, so that a crash of the library becomes a problem.
fn run_in_child(path: &Path) -> Result<Exit> {
    let status = Command::new(PROGRAM)
        .arg0("kiln")
        .args(std::env::args_os().skip(1))
        .env(IS_CHILD, "1")
        .status()
        .context(Code::InspectChild, || {
            "start `kiln inspect` in a child process".into()
        })?;
    if let Some(code) = status.code() {
        return Ok(Exit::from_code(code));
    }
    let message = format!(
        "Qualcomm's library crashed on {} ({status})",
        path.display()
    );
    let help = "the file is damaged, malicious, or of another version than the library: build it \
                again";
    Err(Problem::new(Code::InspectCrashed, message).help(help))
}

/// The description of the file: lines of text, or one line of JSON.
fn describe(args: &Args, common: &Common, stages: &Registry) -> Result<String> {
    let json = common.json;
    let libraries = device::Libraries {
        folder: args.qnn.as_deref(),
        cache: &common.cache,
    };
    let file = open_file(&args.file).context(Code::CallUnreadable, || "open it".into())?;
    let magic = head(&args.file, MAGIC_BYTES).context(Code::CallUnreadable, || "read it".into())?;
    let text = match magic.as_slice() {
        start if start.starts_with(&GGUF) => {
            return gguf::describe(&args.file, args.tensors, json, stages);
        }
        start if start.starts_with(QuantReport::MAGIC) => {
            return quant_report::describe(&file, args.tensors, json);
        }
        start if onnx::is_onnx(start) => onnx::describe(&file, json)?,
        start if device::is_context_binary(start) => {
            device::describe_binary(&args.file, &libraries, json)?
        }
        start if device::is_dlc(start) => {
            device::describe_dlc(&args.file, &file, &libraries, json)?
        }
        start => return Err(unsupported_format(&args.file, start)),
    };
    if json {
        return Ok(text);
    }
    Ok(text + &quant_report::text_beside(&args.file, args.tensors))
}
