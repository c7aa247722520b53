//! `kiln verify`: compares the files of a build with the lock file beside its plan. Needs neither
//! cache nor network, and builds nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use super::super::columns::columns;
use super::super::{Common, Exit, Failed};
use crate::action::Registry;
use crate::base::{Code, Problem, bytes, count, open_file};
use crate::records::{Artifact, BuildRecord, lock};
use crate::store::hash_file_parallel;

/// What to verify.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plan file; only the lock file beside it is read
    #[arg(value_name = "PLAN.toml")]
    plan: PathBuf,
    /// Folder of the artifacts [default: out/PLAN]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A file that differs from the lock.
#[derive(Debug, Serialize)]
struct Fault {
    path: String,
    fault: Kind,
    /// Details; may be empty.
    what: String,
}

impl Fault {
    /// Whether a measured file has other values than the locked one, which may depend on the
    /// processor. Both the lock and the stage kind must say that the stage measures.
    fn is_measurement(&self, locked: &BuildRecord, stages: &Registry) -> bool {
        let Some(made) = locked.stage.get(stage_of(&self.path)) else {
            return false;
        };
        let Some(kind) = stages.get(&made.kind) else {
            return false;
        };
        matches!(self.fault, Kind::Differs) && made.measured && kind.spec().measures
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Missing,
    #[serde(rename = "other")]
    Differs,
    Unreadable,
    /// The lock does not have it.
    Unknown,
}

/// Checks every file.
pub(in crate::cli) fn run(args: &Args, common: &Common, stages: &Registry) -> Result<Exit, Failed> {
    let path = lock::beside(&args.plan);
    if !path.exists() {
        return Err(lock::none_at(&path).into());
    }
    let locked = BuildRecord::read_lock(&path)?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => Path::new("out").join(locked.plan.as_str()),
    };
    let files = locked.files();
    let mut size_bytes = 0u64;
    for artifact in files.values() {
        size_bytes = size_bytes.saturating_add(artifact.blake3.size_bytes);
    }
    let (mut figures, mut faults) = (vec![], vec![]);
    for fault in find_faults(&locked, &files, &out, |_| true) {
        if fault.is_measurement(&locked, stages) {
            figures.push(fault.path);
        } else {
            faults.push(fault);
        }
    }
    if common.json {
        let line = json!({
            "lock": path,
            "files": files.len(),
            "bytes": size_bytes,
            "faults": faults,
            "figures": figures,
        });
        common.print(&format!("{line}\n"));
    } else {
        for path in &figures {
            common.print(&format!(
                "{path}: measured values differ from the lock file\n"
            ));
        }
    }
    if !faults.is_empty() {
        let problem = report(&faults, &out, &path, common);
        let help = "write them again: kiln build PLAN.toml --locked";
        return Err(problem.help(help).into());
    }
    if !common.json {
        let number = count(files.len(), "file");
        common.print(&format!(
            "{number}, {}: no difference from {}\n",
            bytes(size_bytes),
            path.display()
        ));
    }
    Ok(Exit::Done)
}

/// Checks the files of `stages` in `out` after a build. `files` are those of the lock at `path`,
/// except that measured files are those of the build.
pub(super) fn check_written(
    locked: &BuildRecord,
    files: &BTreeMap<String, Artifact>,
    path: &Path,
    out: &Path,
    stages: &[&str],
    common: &Common,
) -> Result<(), Failed> {
    let faults = find_faults(locked, files, out, |stage| stages.contains(&stage));
    if faults.is_empty() {
        return Ok(());
    }
    if common.json {
        common.print(&format!("{}\n", json!({"lock": path, "faults": faults})));
    }
    let help = "it was changed without a change of its modification time: remove it and build \
                again";
    Err(report(&faults, out, path, common).help(help).into())
}

/// The stage of the file `STAGE/NAME`.
fn stage_of(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

/// The differences between `out` and the lock, for the stages that `is_selected` accepts. `files`
/// are the expected files of all stages.
fn find_faults(
    locked: &BuildRecord,
    files: &BTreeMap<String, Artifact>,
    out: &Path,
    is_selected: impl Fn(&str) -> bool,
) -> Vec<Fault> {
    let mut selected = vec![];
    for (path, artifact) in files {
        if is_selected(stage_of(path)) {
            selected.push((path, artifact));
        }
    }
    let mut faults: Vec<Fault> = selected
        .par_iter()
        .filter_map(|(path, artifact)| check_file(out, path, artifact))
        .collect();
    for (stage, made) in &locked.stage {
        if is_selected(stage.as_str()) && !made.artifacts.is_empty() {
            add_unknown_files(out, stage.as_str(), files, &mut faults);
        }
    }
    faults.sort_by(|a, b| a.path.cmp(&b.path));
    faults
}

/// Prints the faults as a table.
fn report(faults: &[Fault], out: &Path, lock: &Path, common: &Common) -> Problem {
    if !common.json {
        let mut rows = vec![];
        for Fault { path, fault, what } in faults {
            rows.push([fault.name().into(), path.clone(), what.clone()]);
        }
        common.print(&columns(&rows));
    }
    let message = format!(
        "{} in {} {} from {}",
        count(faults.len(), "file"),
        out.display(),
        differ_verb(faults.len()),
        lock.display()
    );
    Problem::new(Code::VerifyDiffers, message)
}

/// `differs` for one thing, `differ` for several.
pub(super) fn differ_verb(number: usize) -> &'static str {
    if number == 1 { "differs" } else { "differ" }
}

/// The fault of the file `path` in `out`, if it has one.
fn check_file(out: &Path, path: &str, artifact: &Artifact) -> Option<Fault> {
    let (fault, what) = match difference(&out.join(path), artifact) {
        Ok(what) => (Kind::Differs, what?),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            (Kind::Missing, String::new())
        }
        Err(error) => (Kind::Unreadable, error.to_string()),
    };
    Some(Fault {
        path: path.into(),
        fault,
        what,
    })
}

/// How a file differs from the locked one, if it does. The size is compared first, which is fast.
fn difference(path: &Path, artifact: &Artifact) -> io::Result<Option<String>> {
    let expected = artifact.blake3;
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    if metadata.len() != expected.size_bytes {
        return Ok(Some(format!(
            "has {} bytes, expected {}",
            metadata.len(),
            expected.size_bytes
        )));
    }
    match hash_file_parallel(&open_file(path)?, &AtomicBool::new(false))? {
        Some(found) if found != expected => Ok(Some(format!(
            "is {}, expected {}",
            found.short(),
            expected.short()
        ))),
        _ => Ok(None),
    }
}

/// Adds the files in the folder of a stage that the lock does not have. Links are not followed.
fn add_unknown_files(
    out: &Path,
    stage: &str,
    files: &BTreeMap<String, Artifact>,
    faults: &mut Vec<Fault>,
) {
    let record = format!("{stage}/{}", crate::store::RECORD);
    let mut folders = vec![stage.to_string()];
    while let Some(folder) = folders.pop() {
        let entries = match read_folder(&out.join(&folder)) {
            Ok(entries) => entries,
            // All its files are reported as missing.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                faults.push(Fault {
                    path: format!("{folder}/"),
                    fault: Kind::Unreadable,
                    what: error.to_string(),
                });
                continue;
            }
        };
        for entry in entries {
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                _ if files.contains_key(&path) || path == record => {}
                _ => faults.push(Fault {
                    path,
                    fault: Kind::Unknown,
                    what: String::new(),
                }),
            }
        }
    }
}

fn read_folder(path: &Path) -> io::Result<Vec<fs::DirEntry>> {
    fs::read_dir(path)?.collect()
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Missing => "missing",
            Kind::Differs => "differs",
            Kind::Unreadable => "unreadable",
            Kind::Unknown => "unknown",
        }
    }
}
