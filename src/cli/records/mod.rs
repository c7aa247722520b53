//! The options of `build` that write records of a build, or compare it with a lock file.

mod locked;
mod rebuild_check;
mod verify;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::json;

pub(super) use locked::Locked;
pub(super) use verify::{Args as VerifyArgs, run as verify};

use super::session::Session;
use super::{Common, Failed, PlanArgs};
use crate::action::Manifest;
use crate::base::atomic::write_atomic;
use crate::base::{Code, Context, Digest, Problem, Result, has_bytes, hash_bytes};
use crate::engine::{Built, Limits};
use crate::records::provenance::{self, Sources, Terms};
use crate::records::{BuildRecord, lock};
use crate::store::{Notes, Stamp};

/// The records in the folder of artifacts. The last is optional.
pub(super) const NAMES: [&str; 3] = ["receipt.json", "SHA256SUMS", "provenance.json"];

/// Removes the records in `out`, which do not describe the artifacts any more.
pub(super) fn remove_records(out: &Path) -> Result<()> {
    for path in NAMES.map(|name| out.join(name)) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.context(Code::PublishReceipt, || {
                format!("remove {}", path.display())
            })?,
        }
    }
    Ok(())
}

/// Which records to write, and what to compare the build with.
#[derive(clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Write the digests of the build to NAME.lock beside the plan
    #[arg(long, conflicts_with = "locked")]
    lock: bool,
    /// Compare the build with the lock file beside the plan; if they differ, write no artifacts and
    /// exit with code 3
    #[arg(long)]
    locked: bool,
    /// Run the parts of STAGE a second time and compare the outputs; exit code 3 if bytes differ
    /// [default: all stages that use no network and no device]
    #[arg(long)]
    check: bool,
    /// Write provenance.json beside the artifacts: an in-toto statement with SLSA provenance
    #[arg(long)]
    provenance: bool,
}

impl Args {
    /// The lock to compare the build with, if any. Fails if the plan alone differs from it, before
    /// anything runs.
    pub(super) fn read_lock<'a>(
        &self,
        plan: &PlanArgs,
        selected: &[String],
        session: &Session,
        common: &'a Common,
    ) -> Result<Option<Locked<'a>>, Failed> {
        if self.lock && !selected.is_empty() {
            let message = format!(
                "--lock with {}: a lock covers the whole plan",
                selected.join(", ")
            );
            let help = "remove the stages; only `--locked` can be used with stages";
            return Err(Problem::new(Code::CallLockOfPart, message)
                .help(help)
                .into());
        }
        if !self.locked {
            return Ok(None);
        }
        let locked = Locked::read(lock::beside(&plan.path), common)?;
        locked.compare_outline(session)?;
        Ok(Some(locked))
    }
}

/// A finished build, of which records are written.
pub(super) struct Records<'a> {
    args: &'a Args,
    plan: &'a PlanArgs,
    session: &'a Session<'a>,
    built: &'a Built,
    kept: &'a [(String, Manifest)],
    /// Computed when it is needed first.
    record: OnceCell<BuildRecord>,
}

impl<'a> Records<'a> {
    /// For a successful build, of which `kept` is written.
    pub(super) fn new(
        args: &'a Args,
        plan: &'a PlanArgs,
        session: &'a Session<'a>,
        built: &'a Built,
        kept: &'a [(String, Manifest)],
    ) -> Self {
        Records {
            args,
            plan,
            session,
            built,
            kept,
            record: OnceCell::new(),
        }
    }

    fn terms(&self) -> Result<Terms> {
        let set = self.plan.set.iter().cloned();
        Terms::of(
            &self.plan.folder()?,
            set,
            std::env::var_os("SOURCE_DATE_EPOCH"),
        )
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            plan: &self.session.plan,
            kinds: self.session.stages,
            built: self.built,
            store: &self.session.store,
        }
    }

    fn record(&self) -> Result<&BuildRecord> {
        if let Some(record) = self.record.get() {
            return Ok(record);
        }
        let record = BuildRecord::of(
            &self.session.outline,
            self.built,
            self.kept,
            &self.session.store,
        )?;
        Ok(self.record.get_or_init(|| record))
    }

    /// Compares the build with a lock.
    pub(super) fn compare_build(&self, locked: &Locked) -> Result<(), Failed> {
        locked.compare_build(self.record()?, self.session)
    }

    /// Compares the files in `out` with a lock.
    pub(super) fn compare_files(&self, locked: &Locked, out: &Path) -> Result<(), Failed> {
        let stages: Vec<&str> = self.kept.iter().map(|(stage, _)| stage.as_str()).collect();
        locked.compare_files(self.record()?, out, &stages)
    }

    /// Writes the receipt and the other records to `out`. Returns whether any of them changed. If a
    /// note says that nothing changed since the last time, does nothing.
    pub(super) fn write(&self, out: &Path) -> Result<bool> {
        let terms = if self.args.provenance {
            Some(self.terms()?)
        } else {
            None
        };
        let names = match terms {
            Some(_) => &NAMES[..],
            None => &NAMES[..2],
        };
        let paths: Vec<PathBuf> = names.iter().map(|name| out.join(name)).collect();
        let note_key = self.note_key(out, terms.as_ref())?;
        let note = self.session.store.read(&note_key)?;
        if let Some(note) = note
            && stamps_of(&paths) == Some(note.text)
        {
            return Ok(false);
        }
        let record = self.record()?;
        let mut texts = vec![pretty_json(record)?, record.sums().into_bytes()];
        if let Some(terms) = &terms {
            let statement = provenance::statement(record, terms, &self.sources())?;
            texts.push(pretty_json(&statement)?);
        }
        let mut changed = false;
        for (path, text) in paths.iter().zip(texts) {
            changed |= write_if_changed(path, &text)?;
        }
        if let Some(stamps) = stamps_of(&paths) {
            self.session.store.write(&note_key, &stamps)?;
        }
        Ok(changed)
    }

    /// The key of the note about written records: a digest of everything that they depend on.
    fn note_key(&self, out: &Path, terms: Option<&Terms>) -> Result<Digest> {
        let mut completed: BTreeMap<&str, Digest> = BTreeMap::new();
        for (id, stage) in &self.built.completed {
            completed.insert(&id.0, stage.digest());
        }
        let mut keep: BTreeMap<&str, String> = BTreeMap::new();
        for stage in &self.session.plan.stages {
            keep.insert(&stage.id.0, format!("{:?}", stage.keep));
        }
        let out = std::path::absolute(out)
            .context(Code::PublishReceipt, || format!("find {}", out.display()))?;
        let key = json!({
            "records": self.session.program,
            "plan": self.session.outline.digest,
            "completed": completed,
            "keep": keep,
            "out": out,
            "statement": terms,
        });
        Ok(hash_bytes(key.to_string().as_bytes()))
    }

    /// Runs parts a second time, with `--check`.
    pub(super) fn check(
        &self,
        selected: &[String],
        limits: Limits,
        cancel: &AtomicBool,
        out: &Path,
        common: &Common,
    ) -> Result<(), Failed> {
        if !self.args.check {
            return Ok(());
        }
        rebuild_check::check(self, selected, limits, cancel, out, common)
    }

    /// Writes the lock file, with `--lock`.
    pub(super) fn write_lock(&self, common: &Common) -> Result<()> {
        if !self.args.lock {
            return Ok(());
        }
        let path = lock::beside(&self.plan.path);
        let changed = self.record()?.write_lock(&path)?;
        common.print(&if common.json {
            format!("{}\n", json!({"lock": path, "wrote": changed}))
        } else if changed {
            format!("lock file written: {}\n", path.display())
        } else {
            format!("lock file unchanged: {}\n", path.display())
        });
        Ok(())
    }
}

/// Size, time and inode of each file as JSON; `None` if a file is missing.
fn stamps_of(paths: &[PathBuf]) -> Option<String> {
    let mut stamps = vec![];
    for path in paths {
        stamps.push(Stamp::of(&fs::symlink_metadata(path).ok()?));
    }
    serde_json::to_string(&stamps).ok()
}

fn pretty_json(record: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(record)
        .context(Code::PublishReceipt, || "serialize a receipt".into())?;
    text.push(b'\n');
    Ok(text)
}

/// Writes `text` to the file `path` atomically, unless it has this text. Returns whether it was
/// written.
fn write_if_changed(path: &Path, text: &[u8]) -> Result<bool> {
    if has_bytes(path, text) {
        return Ok(false);
    }
    write_atomic(path, text)
        .context(Code::PublishReceipt, || format!("write {}", path.display()))?;
    Ok(true)
}
