//! Descriptions of quantization reports: the file `quantization.json` beside graphs and context
//! binaries.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::base::{Code, Context, Result, open_file};
use crate::model::quant_report::QuantReport;

/// Size limit of a report. One of ten thousand tensors has 3 MB.
const MAX_BYTES: u64 = 64 << 20;

/// The name of the report of a model in the same folder.
const FILE_NAME: &str = "quantization.json";

/// The summary, and a table of the tensors if `tensors`; with `json`, the file itself.
pub(super) fn describe(file: &File, tensors: bool, json: bool) -> Result<String> {
    let text = read(file)?;
    let description = render(&text, tensors)?;
    if json {
        return Ok(String::from_utf8_lossy(&text).into_owned());
    }
    Ok(description)
}

/// The description of the report in the folder of the model at `path`; empty if there is no
/// readable report.
pub(super) fn text_beside(path: &Path, tensors: bool) -> String {
    match describe_beside(path, tensors) {
        Ok(description) => {
            format!("\nthe stored weights, compared with the source file\n{description}")
        }
        Err(_) => String::new(),
    }
}

fn describe_beside(path: &Path, tensors: bool) -> Result<String> {
    let path = path.with_file_name(FILE_NAME);
    let file = open_file(&path).context(Code::CallUnreadable, || "open it".into())?;
    describe(&file, tensors, false)
}

fn read(file: &File) -> Result<Vec<u8>> {
    let mut text = vec![];
    file.take(MAX_BYTES)
        .read_to_end(&mut text)
        .context(Code::CallUnreadable, || "read it".into())?;
    Ok(text)
}

fn render(text: &[u8], tensors: bool) -> Result<String> {
    let report = QuantReport::read(text)?;
    if tensors {
        return Ok(format!("{report}\n{}", report.table()));
    }
    Ok(report.to_string())
}
