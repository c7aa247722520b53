//! The folder that a program works in: `inputs/`, `outputs/`, `tmp/`. It is gone afterwards.

use std::collections::BTreeMap;
use std::fs::{self, File, FileType, Permissions};
use std::io::{self, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Call;
use crate::action::{BlobSink, Job, Outputs, Part, PartName, stands_for};
use crate::base::{CanonJson, Code, Context, Problem, Result, open_file};

/// As much of a file is read and written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// How many files a problem lists.
const SHOWN: usize = 12;

pub(super) struct Folder {
    /// Where the program runs.
    pub(super) work: PathBuf,
    /// What it says goes here, out of its sight.
    pub(super) said: PathBuf,
}

impl Folder {
    /// Makes it, and copies the inputs of `job`: whatever a program does to a copy, the cache stays
    /// as it is.
    pub(super) fn lay(call: &Call, job: &Job) -> Result<Folder> {
        let folder = Folder {
            work: job.scratch()?.join("work"),
            said: job.scratch()?.join("said.txt"),
        };
        for path in [folder.inputs(), folder.outputs(), folder.tmp()] {
            make(&path)?;
        }
        for (name, input) in job.inputs() {
            let path = folder.inputs().join(name);
            path.parent().map_or(Ok(()), make)?;
            let copied = match input.window {
                None => fs::copy(job.path(name)?, &path).map(drop),
                Some(_) => {
                    let bytes = job.read(name)?;
                    File::create(&path).and_then(|mut copy| {
                        bytes.stream(CHUNK_BYTES, |piece| copy.write_all(piece))
                    })
                }
            };
            let is_program = call.program.strip_prefix(super::INPUTS) == Some(name);
            let mode = if is_program { 0o555 } else { 0o444 };
            copied
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
                .context(Code::Io, || {
                    format!("copy the input {name} to {}", path.display())
                })?;
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

    /// Puts the outputs that `call` names into the cache.
    pub(super) fn take(&self, call: &Call, job: &Job) -> Result<Outputs> {
        let found = files_below(&self.outputs())?;
        let mut outputs = Outputs::new();
        for wanted in &call.outputs {
            let is_wanted = |name: &str| stands_for(wanted, name);
            let before = outputs.len();
            for (name, kind) in found.iter().filter(|(name, _)| is_wanted(name)) {
                if !kind.is_file() {
                    return Err(not_a_file(call, name, *kind));
                }
                outputs.insert(
                    PartName::new(name.as_str())?,
                    take(&self.outputs().join(name), job)?,
                );
            }
            if outputs.len() == before && !outputs.keys().any(|name| is_wanted(name.as_str())) {
                return Err(missing(call, wanted, &found));
            }
        }
        Ok(outputs)
    }
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(Code::Io, || format!("make {}", path.display()))
}

fn take(path: &Path, job: &Job) -> Result<Part> {
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

/// All that lies below `folder` but folders, by the path from there. No link is followed, so
/// nothing lies elsewhere.
fn files_below(folder: &Path) -> Result<BTreeMap<String, FileType>> {
    let failed = || format!("list {}", folder.display());
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    // The program may have put a link where its folder was.
    if !fs::symlink_metadata(folder)
        .context(Code::Io, failed)?
        .is_dir()
    {
        let problem = Problem::new(
            Code::CommandOutput,
            "the program put something else where outputs/ was",
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
    .help("a link may lead anywhere: only files are taken, so let it write a copy")
}

fn missing(call: &Call, wanted: &str, found: &BTreeMap<String, FileType>) -> Problem {
    let names: Vec<&str> = found.keys().take(SHOWN).map(String::as_str).collect();
    let more = if found.len() > SHOWN {
        format!(" and {} more", found.len() - SHOWN)
    } else {
        String::new()
    };
    let there = if names.is_empty() {
        "nothing".into()
    } else {
        names.join(", ") + &more
    };
    Problem::new(
        Code::CommandOutput,
        format!(
            "`{}` succeeded, but wrote no outputs/{wanted}",
            call.program
        ),
    )
    .help(format!(
        "`outputs/` holds {there}; name these files in `outputs`, or change what it writes"
    ))
}
