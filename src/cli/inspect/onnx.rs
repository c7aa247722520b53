//! Descriptions of ONNX files.

use std::fs::File;
use std::io::Read;

use serde::Serialize;

use crate::base::{Code, Context, Result};
use crate::model::onnx::{MAX_MODEL_BYTES, Summary, decode};

/// The description with `--json`.
#[derive(Serialize)]
struct Json {
    format: &'static str,
    #[serde(flatten)]
    summary: Summary,
}

/// Whether a file begins like ONNX files in practice: with field 1, the IR version, as a varint.
pub(super) fn is_onnx(start: &[u8]) -> bool {
    matches!(start, [0x08, 1..=0x7f, ..])
}

/// The description: lines of text, or one line of JSON.
pub(super) fn describe(file: &File, json: bool) -> Result<String> {
    let mut bytes = vec![];
    let limit = MAX_MODEL_BYTES as u64 + 1;
    file.take(limit)
        .read_to_end(&mut bytes)
        .context(Code::CallUnreadable, || "read it".into())?;
    let summary = Summary::of(&decode(&bytes)?);
    if !json {
        return Ok(summary.to_string());
    }
    let json = Json {
        format: "onnx",
        summary,
    };
    serde_json::to_string(&json).context(Code::CallJson, || "write its summary as JSON".into())
}
