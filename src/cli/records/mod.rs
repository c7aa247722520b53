//! The options of `build` that write records of it, beside the artifacts and beside the plan, or
//! compare the build with them.

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
use crate::base::{Code, Context, Digest, Problem, Result, hash_bytes, is_file_of};
use crate::engine::{Built, Limits};
use crate::records::provenance::{self, Sources, Terms};
use crate::records::{BuildRecord, lock};
use crate::store::{Notes, Stamp};

/// The records in the folder of artifacts; the last only on request.
pub(super) const NAMES: [&str; 3] = ["receipt.json", "SHA256SUMS", "provenance.json"];

/// Takes away the records in `out`, which no longer tell what lies beside them.
pub(super) fn withdraw(out: &Path) -> Result<()> {
    for path in NAMES.map(|name| out.join(name)) {
        let removed = fs::remove_file(&path);
        removed
            .or_else(|error| {
                if error.kind() == ErrorKind::NotFound {
                    Ok(())
                } else {
                    Err(error)
                }
            })
            .context(Code::PublishReceipt, || {
                format!("remove {}", path.display())
            })?;
    }
    Ok(())
}

/// Which records, and whether a build is held to them.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// Write what the build comes to beside the plan, as NAME.lock
    #[arg(long, conflicts_with = "locked")]
    lock: bool,
    /// Write nothing out if the build comes to something else than the lock beside the plan says;
    /// exit code 3
    #[arg(long)]
    locked: bool,
    /// Run the parts of STAGE, or of all that do not reach outside, once more and compare; exit
    /// code 3 if bytes differ
    #[arg(long)]
    check: bool,
    /// Write provenance.json beside the receipt: an in-toto statement in the terms of SLSA
    #[arg(long)]
    provenance: bool,
}

impl Args {
    /// The lock to hold the build to, if any. What differs already in the plan is said now, before
    /// anything runs.
    pub(super) fn locked<'a>(
        &self,
        plan: &PlanArgs,
        wanted: &[String],
        session: &Session,
        common: &'a Common,
    ) -> Result<Option<Locked<'a>>, Failed> {
        if self.lock && !wanted.is_empty() {
            let message = format!(
                "--lock with {}: a lock covers the whole plan",
                wanted.join(", ")
            );
            let help = "remove the stages; only `--locked` takes some";
            return Err(Problem::new(Code::CallLockOfPart, message)
                .help(help)
                .into());
        }
        if !self.locked {
            return Ok(None);
        }
        let locked = Locked::read(lock::beside(&plan.path), common)?;
        locked.hold_outline(session)?;
        Ok(Some(locked))
    }
}

/// What a build came to, for whoever asks on paper.
pub(super) struct Records<'a> {
    args: &'a Args,
    plan: &'a PlanArgs,
    session: &'a Session<'a>,
    built: &'a Built,
    kept: &'a [(String, Manifest)],
    /// StageRecord once someone asks.
    record: OnceCell<BuildRecord>,
}

impl<'a> Records<'a> {
    /// Of a whole build, of which `kept` is written out.
    pub(super) fn of(
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

    /// Holds the build to a lock.
    pub(super) fn hold(&self, locked: &Locked) -> Result<(), Failed> {
        locked.hold(self.record()?, self.session)
    }

    /// Holds what was written into `out` to a lock.
    pub(super) fn hold_written(&self, locked: &Locked, out: &Path) -> Result<(), Failed> {
        locked.hold_written(
            self.record()?,
            out,
            &self
                .kept
                .iter()
                .map(|(stage, _)| stage.as_str())
                .collect::<Vec<_>>(),
        )
    }

    /// Writes the receipt and what belongs beside it into `out`; yields whether any was another or
    /// none was there. If nothing changed since it was last done, which a note knows, nothing
    /// is spelled.
    pub(super) fn write(&self, out: &Path) -> Result<bool> {
        let statement = self.args.provenance.then(|| self.terms()).transpose()?;
        let names = if statement.is_some() {
            &NAMES[..]
        } else {
            &NAMES[..2]
        };
        let paths: Vec<PathBuf> = names.iter().map(|name| out.join(name)).collect();
        let stamps = || -> Option<String> {
            let stamp = |path: &PathBuf| Some(Stamp::of(&fs::symlink_metadata(path).ok()?));
            serde_json::to_string(&paths.iter().map(stamp).collect::<Option<Vec<_>>>()?).ok()
        };
        let question = self.question(out, statement.as_ref())?;
        let noted = self.session.store.read(&question)?.map(|note| note.text);
        if noted.is_some() && noted == stamps() {
            return Ok(false);
        }
        let record = self.record()?;
        let mut texts = vec![pretty(record)?, record.sums().into_bytes()];
        if let Some(terms) = &statement {
            texts.push(pretty(&provenance::statement(
                record,
                terms,
                &self.sources(),
            )?)?);
        }
        let mut wrote = false;
        for (path, text) in paths.iter().zip(texts) {
            wrote |= replace(path, &text)?;
        }
        if let Some(stamps) = stamps() {
            self.session.store.write(&question, &stamps)?;
        }
        Ok(wrote)
    }

    /// All that the records say hangs on this.
    fn question(&self, out: &Path, statement: Option<&Terms>) -> Result<Digest> {
        let completed: BTreeMap<&str, Digest> = self
            .built
            .completed
            .iter()
            .map(|(id, completed)| (id.0.as_str(), completed.digest()))
            .collect();
        let keep = self
            .session
            .plan
            .stages
            .iter()
            .map(|stage| (&stage.id, format!("{:?}", stage.keep)));
        let keep: BTreeMap<_, _> = keep.map(|(id, keep)| (id.0.as_str(), keep)).collect();
        let out = std::path::absolute(out)
            .context(Code::PublishReceipt, || format!("find {}", out.display()))?;
        let question = json!({
            "records": self.session.program, "plan": self.session.outline.digest, "sealed": completed, "keep": keep, "out": out,
            "statement": statement,
        });
        Ok(hash_bytes(question.to_string().as_bytes()))
    }

    /// Runs once more what is to be checked.
    pub(super) fn check(
        &self,
        wanted: &[String],
        limits: Limits,
        cancel: &AtomicBool,
        out: &Path,
        common: &Common,
    ) -> Result<(), Failed> {
        match self.args.check {
            true => rebuild_check::check(self, wanted, limits, cancel, out, common),
            false => Ok(()),
        }
    }

    /// Writes the lock, if it is asked for.
    pub(super) fn lock(&self, common: &Common) -> Result<()> {
        if !self.args.lock {
            return Ok(());
        }
        let path = lock::beside(&self.plan.path);
        let wrote = self.record()?.write_lock(&path)?;
        common.print(&match common.json {
            true => format!("{}\n", json!({"lock": path, "wrote": wrote})),
            false => format!(
                "{} {}\n",
                if wrote { "locked in" } else { "as locked in" },
                path.display()
            ),
        });
        Ok(())
    }
}

fn pretty(paper: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(paper)
        .context(Code::PublishReceipt, || "serialize a receipt".into())?;
    text.push(b'\n');
    Ok(text)
}

/// Puts `text` at `path`, whole or not at all; yields whether something else was there.
fn replace(path: &Path, text: &[u8]) -> Result<bool> {
    if is_file_of(path, text) {
        return Ok(false);
    }
    write_atomic(path, text)
        .context(Code::PublishReceipt, || format!("write {}", path.display()))?;
    Ok(true)
}
