//! `kiln verify`: the files of a build against the lock beside its plan. Needs neither cache nor
//! network, and builds nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use super::super::{Common, Exit, Failed};
use super::columns::columns;
use crate::action::Registry;
use crate::base::{Code, Problem, bytes, count, open_file};
use crate::records::{Artifact, BuildRecord, lock};
use crate::store::hash_file_parallel;

/// What to verify.
#[derive(clap::Args)]
pub struct Args {
    /// The plan; of it, only the lock beside it is read
    #[arg(value_name = "PLAN.toml")]
    plan: PathBuf,
    /// Where the artifacts are, if not in out/PLAN
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A file that is not as the lock says.
#[derive(Debug, Serialize)]
struct Fault {
    path: String,
    fault: Kind,
    /// What exactly; empty where nothing is to be added.
    what: String,
}

impl Fault {
    /// Whether the file has other figures than those that were locked: they depend on the
    /// processor. What gives figures is not for the lock alone to say.
    fn is_of_figures(&self, locked: &BuildRecord, stages: &Registry) -> bool {
        let made = self
            .path
            .split('/')
            .next()
            .and_then(|stage| locked.stage.get(stage));
        let measures = |kind: &str| stages.get(kind).is_some_and(|kind| kind.spec().measures);
        matches!(self.fault, Kind::Other)
            && made.is_some_and(|made| made.measured && measures(&made.kind))
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Missing,
    Other,
    Unreadable,
    /// The lock does not know it.
    Unknown,
}

/// Checks every file.
pub(in crate::cli) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let path = lock::beside(&args.plan);
    if !path.exists() {
        return Err(lock::none_at(&path).into());
    }
    let locked = BuildRecord::read_lock(&path)?;
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| Path::new("out").join(locked.plan.as_str()));
    let files = locked.files();
    let size_bytes = files.values().fold(0u64, |sum, artifact| {
        sum.saturating_add(artifact.blake3.size_bytes)
    });
    let (figures, faults): (Vec<Fault>, Vec<Fault>) = faults(&locked, &files, &out, |_| true)
        .into_iter()
        .partition(|fault| fault.is_of_figures(&locked, stages));
    if common.json {
        let figures: Vec<&str> = figures.iter().map(|fault| fault.path.as_str()).collect();
        let line = json!({"lock": path, "files": files.len(), "bytes": size_bytes, "faults": faults, "figures": figures});
        common.print(&format!("{line}\n"));
    }
    let number = count(files.len(), "file");
    if !common.json {
        for figures in &figures {
            common.print(&format!(
                "{}: measured, with other figures than locked\n",
                figures.path
            ));
        }
    }
    if faults.is_empty() {
        if !common.json {
            common.print(&format!(
                "{number}, {}: as {} says\n",
                bytes(size_bytes),
                path.display()
            ));
        }
        return Ok(Exit::Done);
    }
    Err(judge(&faults, &out, &path, common)
        .help("write them again: kiln build PLAN.toml --locked")
        .into())
}

/// Refuses what a build left in `out` of `stages`, if it is not what `files` say: those of the lock
/// `locked` at `path`, and the figures that the build measured.
pub(super) fn hold(
    locked: &BuildRecord,
    files: &BTreeMap<String, Artifact>,
    path: &Path,
    out: &Path,
    stages: &[&str],
    common: &Common,
) -> Result<(), Failed> {
    let faults = faults(locked, files, out, |stage| stages.contains(&stage));
    if faults.is_empty() {
        return Ok(());
    }
    if common.json {
        common.print(&format!("{}\n", json!({"lock": path, "faults": faults})));
    }
    let help = "somebody changed it without changing its time: remove it, and it is written again";
    Err(judge(&faults, out, path, common).help(help).into())
}

/// What is not as `locked` says in `out`, of the stages that are `wanted`; `files` are those of
/// all.
fn faults(
    locked: &BuildRecord,
    files: &BTreeMap<String, Artifact>,
    out: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Vec<Fault> {
    let of_stages: Vec<(&String, &Artifact)> = files
        .iter()
        .filter(|(path, _)| path.split('/').next().is_some_and(&wanted))
        .collect();
    let look = |(path, artifact): &(&String, &Artifact)| {
        let (fault, what) = look(&out.join(path), artifact)?;
        Some(Fault {
            path: path.to_string(),
            fault,
            what,
        })
    };
    let mut faults: Vec<Fault> = of_stages.par_iter().filter_map(look).collect();
    for (stage, made) in &locked.stage {
        if wanted(stage.as_str()) && !made.artifacts.is_empty() {
            unknown(out, stage.as_str(), files, &mut faults);
        }
    }
    faults.sort_by(|a, b| a.path.cmp(&b.path));
    faults
}

/// Shows what is wrong.
fn judge(faults: &[Fault], out: &Path, lock: &Path, common: &Common) -> Problem {
    if !common.json {
        let row = |fault: &Fault| {
            [
                fault.fault.word().into(),
                fault.path.clone(),
                fault.what.clone(),
            ]
        };
        common.print(&columns(&faults.iter().map(row).collect::<Vec<_>>()));
    }
    let are = if faults.len() == 1 { "is" } else { "are" };
    let message = format!(
        "{} in {} {are} not as {} says",
        count(faults.len(), "file"),
        out.display(),
        lock.display()
    );
    Problem::new(Code::VerifyDiffers, message)
}

/// What is wrong with a file, if anything is. Its size first, which costs nothing.
fn look(path: &Path, artifact: &Artifact) -> Option<(Kind, String)> {
    let expected = artifact.blake3;
    let hashed = || -> io::Result<Option<String>> {
        let found = fs::symlink_metadata(path)?;
        if !found.is_file() {
            return Err(io::Error::other("is no regular file"));
        }
        if found.len() != expected.size_bytes {
            return Ok(Some(format!(
                "has {} bytes, locked are {}",
                found.len(),
                expected.size_bytes
            )));
        }
        let found = hash_file_parallel(&open_file(path)?, &AtomicBool::new(false))?
            .filter(|found| *found != expected);
        Ok(found.map(|found| format!("is {}, locked is {}", found.short(), expected.short())))
    };
    match hashed() {
        Ok(other) => other.map(|what| (Kind::Other, what)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Some((Kind::Missing, String::new()))
        }
        Err(error) => Some((Kind::Unreadable, error.to_string())),
    }
}

/// The files of a stage's folder that are not in the lock. Links are not followed.
fn unknown(out: &Path, stage: &str, known: &BTreeMap<String, Artifact>, faults: &mut Vec<Fault>) {
    let record = format!("{stage}/{}", crate::store::RECORD);
    let mut folders = vec![stage.to_string()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(out.join(&folder)) {
            // Then its files are missing, and named already.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries,
        };
        let mut fault =
            |path: String, fault, what: String| faults.push(Fault { path, fault, what });
        let entries = match entries.and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) => {
                fault(format!("{folder}/"), Kind::Unreadable, error.to_string());
                continue;
            }
        };
        for entry in entries {
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                _ if known.contains_key(&path) || path == record => {}
                _ => fault(path, Kind::Unknown, String::new()),
            }
        }
    }
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Missing => "missing",
            Kind::Other => "other",
            Kind::Unreadable => "unreadable",
            Kind::Unknown => "unknown",
        }
    }
}
