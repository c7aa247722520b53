//! Quantization reports: `quantization.json`, which lies beside graphs and context binaries.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::base::{Code, Context, Result, open_file};
use crate::model::quant_report::QuantReport;

/// The largest report that is read: ten thousand tensors have 3 MB.
const MAX_BYTES: u64 = 64 << 20;

/// What lies beside a model.
const BESIDE: &str = "quantization.json";

/// The summary, and the tensors if asked for; with `json`, the text itself.
pub(super) fn describe(file: &File, tensors: bool, json: bool) -> Result<String> {
    let text = read(file)?;
    let described = spell(&text, tensors)?;
    Ok(if json {
        String::from_utf8_lossy(&text).into_owned()
    } else {
        described
    })
}

/// What the quantization report beside the model at `path` says; nothing where there is none that can be read.
pub(super) fn beside(path: &Path, tensors: bool) -> String {
    let file = path
        .parent()
        .and_then(|folder| open_file(&folder.join(BESIDE)).ok());
    let described = file.and_then(|file| spell(&read(&file).ok()?, tensors).ok());
    described.map_or(String::new(), |text| {
        format!("\nthe weights as stored, against the file they came from\n{text}")
    })
}

fn read(file: &File) -> Result<Vec<u8>> {
    let mut text = vec![];
    file.take(MAX_BYTES)
        .read_to_end(&mut text)
        .context(Code::CallUnreadable, || "read it".into())?;
    Ok(text)
}

fn spell(text: &[u8], tensors: bool) -> Result<String> {
    let report = QuantReport::read(text)?;
    let tensors = if tensors {
        format!("\n{}", report.table())
    } else {
        String::new()
    };
    Ok(format!("{report}{tensors}"))
}
