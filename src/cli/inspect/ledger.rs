//! Ledgers, described: `ledger.json`, which lies beside graphs and context binaries.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::base::{Context, Result};
use crate::model::ledger::Ledger;

/// The largest ledger that is read: ten thousand tensors have 3 MB.
const MAX_BYTES: u64 = 64 << 20;

/// What lies beside a model.
const BESIDE: &str = "ledger.json";

/// The summary, and the tensors if asked for; with `json`, the text itself.
pub(super) fn describe(file: &File, tensors: bool, json: bool) -> Result<String> {
    let mut text = vec![];
    file.take(MAX_BYTES).read_to_end(&mut text).context("kiln::call::unreadable", || "read it".into())?;
    let ledger = Ledger::read(&text)?;
    if json {
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    let tensors = if tensors { format!("\n{}", ledger.table()) } else { String::new() };
    Ok(format!("{ledger}{tensors}"))
}

/// What the ledger beside the model at `path` says; nothing where there is none that can be read.
pub(super) fn beside(path: &Path, tensors: bool) -> String {
    let ledger = path.parent().and_then(|folder| fs::read(folder.join(BESIDE)).ok());
    let Some(ledger) = ledger.and_then(|text| Ledger::read(&text).ok()) else { return String::new() };
    let tensors = if tensors { format!("\n{}", ledger.table()) } else { String::new() };
    format!("\nthe weights as stored, against the file they came from\n{ledger}{tensors}")
}
