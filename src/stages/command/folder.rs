//! The folder in which a program runs: `inputs/`, `outputs/`, `tmp/`. It is removed afterwards.

use std::collections::BTreeMap;
use std::fs::{self, File, FileType, Permissions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Call;
use crate::action::{BlobSink, Job, Outputs, Part, PartName, matches_output};
use crate::base::{CanonJson, Code, Context, Problem, Result, open_file};

/// Bytes that are read and written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// How many files a problem lists.
const SHOWN: usize = 12;

pub(super) struct Folder {
    /// The working directory of the program.
    pub(super) work: PathBuf,
    /// The file with the program's output, outside of its working directory.
    pub(super) log: PathBuf,
}

impl Folder {
    /// Creates the folder and copies the inputs of `job`. The program gets copies, so that it
    /// cannot change the cache.
    pub(super) fn create(call: &Call, job: &Job) -> Result<Folder> {
        let folder = Folder {
            work: job.scratch()?.join("work"),
            log: job.scratch()?.join("log.txt"),
        };
        for path in [folder.inputs(), folder.outputs(), folder.tmp()] {
            create_folder(&path)?;
        }
        for (name, input) in job.inputs() {
            let path = folder.inputs().join(name);
            if let Some(parent) = path.parent() {
                create_folder(parent)?;
            }
            let failed = || format!("copy the input {name} to {}", path.display());
            if input.window.is_none() {
                fs::copy(job.path(name)?, &path).context(Code::Io, failed)?;
            } else {
                let bytes = job.read(name)?;
                let mut copy = File::create(&path).context(Code::Io, failed)?;
                bytes
                    .stream(CHUNK_BYTES, |chunk| copy.write_all(chunk))
                    .context(Code::Io, failed)?;
            }
            let is_program = call.program.strip_prefix(super::INPUTS) == Some(name);
            let mode = if is_program { 0o555 } else { 0o444 };
            fs::set_permissions(&path, Permissions::from_mode(mode)).context(Code::Io, failed)?;
        }
        Ok(folder)
    }

    fn inputs(&self) -> PathBuf {
        self.work.join("inputs")
    }

    fn outputs(&self) -> PathBuf {
        self.work.join("outputs")
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.work.join("tmp")
    }

    /// Stores the outputs that `call` names.
    pub(super) fn store_outputs(&self, call: &Call, job: &Job) -> Result<Outputs> {
        let found = files_below(&self.outputs())?;
        let mut outputs = Outputs::new();
        for output in &call.outputs {
            let mut is_missing = true;
            for (name, kind) in &found {
                if !matches_output(output, name) {
                    continue;
                }
                if !kind.is_file() {
                    return Err(not_a_file(call, name, *kind));
                }
                let part = store(&self.outputs().join(name), job)?;
                outputs.insert(PartName::new(name.as_str())?, part);
                is_missing = false;
            }
            if is_missing {
                return Err(missing(call, output, &found));
            }
        }
        Ok(outputs)
    }
}

fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(Code::Io, || format!("make {}", path.display()))
}

fn store(path: &Path, job: &Job) -> Result<Part> {
    let failed = || format!("take the output {}", path.display());
    let file = open_file(path).context(Code::Io, failed)?;
    let mut sink: Box<dyn BlobSink> = job.create()?;
    io::copy(&mut BufReader::with_capacity(CHUNK_BYTES, file), &mut sink)
        .context(Code::Io, failed)?;
    Ok(Part {
        content: sink.finish()?,
        facts: CanonJson::default(),
    })
}

/// Everything below `folder` except folders, by the path relative to it. Links are not followed.
fn files_below(folder: &Path) -> Result<BTreeMap<String, FileType>> {
    let failed = || format!("list {}", folder.display());
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    // The program may have replaced its folder by a link.
    let metadata = fs::symlink_metadata(folder).context(Code::Io, failed)?;
    if !metadata.is_dir() {
        let problem = Problem::new(
            Code::CommandOutput,
            "the program replaced outputs/ by something else",
        );
        return Err(problem.help("let it write into outputs/, and leave the folder itself alone"));
    }
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).context(Code::Io, failed)? {
            let entry = entry.context(Code::Io, failed)?;
            let kind = entry.file_type().context(Code::Io, failed)?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path();
                let name = path.strip_prefix(folder).unwrap_or(&path);
                found.insert(name.to_string_lossy().into_owned(), kind);
            }
        }
    }
    Ok(found)
}

fn not_a_file(call: &Call, name: &str, kind: FileType) -> Problem {
    let what = if kind.is_symlink() {
        "a symbolic link"
    } else {
        "neither a file nor a folder"
    };
    Problem::new(
        Code::CommandOutput,
        format!("`{}` left {what} as outputs/{name}", call.program),
    )
    .help("only regular files are stored, so let it write a copy")
}

fn missing(call: &Call, output: &str, found: &BTreeMap<String, FileType>) -> Problem {
    let names: Vec<&str> = found.keys().take(SHOWN).map(String::as_str).collect();
    let mut list = names.join(", ");
    if found.is_empty() {
        list = "nothing".into();
    }
    if found.len() > SHOWN {
        list += &format!(" and {} more", found.len() - SHOWN);
    }
    Problem::new(
        Code::CommandOutput,
        format!("`{}` succeeded, but left no outputs/{output}", call.program),
    )
    .help(format!(
        "outputs/ contains {list}; correct `outputs` in the plan, or let the program write it"
    ))
}
