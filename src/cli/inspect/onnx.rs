//! ONNX files, described.

use std::fs::File;
use std::io::Read;

use serde::Serialize;

use crate::base::{Code, Context, Result};
use crate::model::onnx::{MAX_MODEL_BYTES, Summary, decode};

/// With `--json`: one line.
#[derive(Serialize)]
struct Json {
    format: &'static str,
    #[serde(flatten)]
    summary: Summary,
}

/// The first bytes of every ONNX file in use: field 1, the IR version, as a varint.
pub(super) fn is_onnx(start: &[u8]) -> bool {
    matches!(start, [0x08, 1..=0x7f, ..])
}

/// A page for people, or a line of JSON.
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
    serde_json::to_string(&json).context(Code::CallJson, || "spell its summary".into())
}
