//! `kiln inspect`: describes a file, whatever it is called: its first bytes tell what it is.

mod device;
mod gguf;
mod onnx;
mod quant_report;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) use gguf::{open_all, with_headers};

use super::session::PROGRAM;
use super::{Common, Exit, Failed};
use crate::base::{Code, Context, Problem, Result, head, open_file};
use crate::model::gguf::MAGIC as GGUF;
use crate::model::quant_report::QuantReport;
use crate::stages::fetch::what_else;

/// What to inspect.
#[derive(clap::Args)]
pub struct Args {
    /// The file
    file: PathBuf,
    /// List the tensors too
    #[arg(long)]
    tensors: bool,
    /// Folder with libQnnSystem.so, which reads context binaries and DLCs [default: the one that a
    /// build fetched]
    #[arg(long, value_name = "DIR", env = "KILN_QNN")]
    qnn: Option<PathBuf>,
}

/// Runs the subcommand.
pub fn run(args: &Args, common: &Common) -> Result<Exit, Failed> {
    if std::env::var_os(HERE).is_none() && is_for_the_vendor(&args.file) {
        return Ok(in_a_child(&args.file)?);
    }
    let text = describe(args, common)
        .map_err(|p| p.within(format!("failed to inspect {}", args.file.display())))?;
    common.print(&text);
    Ok(Exit::Done)
}

/// As much of a file tells its format.
pub(in crate::cli) const START_BYTES: u64 = 16;

/// The problem of a file that begins with `start`, told as what it is if that is known.
pub(in crate::cli) fn unknown(path: &Path, start: &[u8]) -> Problem {
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

/// Set for a child that is to describe the file itself.
const HERE: &str = "KILN_INSPECT_HERE";

/// Whether Qualcomm's library describes the file, which was not made for files of enemies.
fn is_for_the_vendor(path: &Path) -> bool {
    head(path, START_BYTES)
        .is_ok_and(|start| device::is_context_binary(&start) || device::is_dlc(&start))
}

/// Has a child do the same call, so that a crash of the library is a problem and no crash of ours.
fn in_a_child(path: &Path) -> Result<Exit> {
    let failed = || "start `kiln inspect` in a process of its own".into();
    let mut child = Command::new(PROGRAM);
    let status = child
        .arg0("kiln")
        .args(std::env::args_os().skip(1))
        .env(HERE, "1")
        .status();
    let status = status.context(Code::InspectChild, failed)?;
    match status.code() {
        Some(code) => Ok(Exit::from_code(code)),
        None => {
            let message = format!(
                "Qualcomm's library crashed on {} ({status})",
                path.display()
            );
            let help = "the file is damaged, hostile, or of another version than the library: \
                        make it anew";
            Err(Problem::new(Code::InspectCrashed, message).help(help))
        }
    }
}

/// What there is to say about the file: lines for people, or one of JSON.
fn describe(args: &Args, common: &Common) -> Result<String> {
    let json = common.json;
    let libraries = device::Libraries {
        folder: args.qnn.as_deref(),
        cache: &common.cache,
    };
    let file = open_file(&args.file).context(Code::CallUnreadable, || "open it".into())?;
    let magic = head(&args.file, START_BYTES).context(Code::CallUnreadable, || "read it".into())?;
    let text = match magic.as_slice() {
        start if start.starts_with(&GGUF) => return gguf::describe(&args.file, args.tensors, json),
        start if start.starts_with(QuantReport::MAGIC) => {
            return quant_report::describe(&file, args.tensors, json);
        }
        start if onnx::is_onnx(start) => onnx::describe(&file, json),
        start if device::is_context_binary(start) => {
            device::describe_binary(&args.file, &libraries, json)
        }
        start if device::is_dlc(start) => device::describe_dlc(&args.file, &file, &libraries, json),
        start => return Err(unknown(&args.file, start)),
    }?;
    Ok(if json {
        text
    } else {
        text + &quant_report::beside(&args.file, args.tensors)
    })
}
