//! A GGUF, by its header alone: a model of many gigabytes takes no longer than a small one.

use std::fs::File;
use std::io::{Read, Seek};

use serde::Serialize;

use crate::base::{self, Context, Problem, Result};
use crate::model::arch::model_facts;
use crate::model::facts::ModelFacts;
use crate::model::gguf::{Gguf, Scalars, Summary, TensorInfo, Value};

/// How much of a file is read at first. A header with a vocabulary has up to about 10 MB.
const FIRST_BYTES: u64 = 16 << 20;

/// With `--json`: one line.
#[derive(Serialize)]
struct Json<'a> {
    format: &'static str,
    version: u32,
    alignment: u32,
    /// What the model is, or why kiln cannot build it.
    #[serde(flatten)]
    model: Verdict,
    metadata: Scalars<'a>,
    tensors: Vec<JsonTensor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Model(ModelFacts),
    Problem(Problem),
}

#[derive(Serialize)]
struct JsonTensor<'a> {
    name: &'a str,
    shape: &'a [u64],
    #[serde(rename = "type")]
    ggml_type: &'a str,
    offset: u64,
    bytes: u64,
}

/// The summary, and the tensors if asked for; with `json`, everything in one line.
pub(super) fn describe(file: &mut File, tensors: bool, json: bool) -> Result<String> {
    with_header(file, |gguf| spell(gguf, tensors, json))
}

/// Reads the header of `file`, and hands it to `take`.
pub(in crate::cli) fn with_header<T>(file: &mut File, take: impl FnOnce(&Gguf) -> Result<T>) -> Result<T> {
    let file_bytes = file.metadata().context("kiln::call::unreadable", || "ask for its size".into())?.len();
    let mut read_bytes = FIRST_BYTES;
    loop {
        let mut prefix = vec![];
        file.rewind().context("kiln::call::unreadable", || "rewind it".into())?;
        file.take(read_bytes).read_to_end(&mut prefix).context("kiln::call::unreadable", || "read it".into())?;
        match Gguf::parse_header(&prefix, file_bytes) {
            Ok(gguf) => return take(&gguf),
            // Perhaps the header is longer than what was read of it.
            Err(_) if read_bytes < file_bytes => read_bytes *= 8,
            Err(problem) => return Err(problem),
        }
    }
}

fn spell(gguf: &Gguf, tensors: bool, json: bool) -> Result<String> {
    let model = model_facts(gguf);
    if json {
        let verdict = model.map_or_else(Verdict::Problem, Verdict::Model);
        let tensors = gguf.tensors.iter().map(json_tensor).collect();
        let Gguf { version, alignment, metadata, .. } = gguf;
        let (version, alignment, metadata) = (*version, *alignment, Scalars(metadata));
        let json = Json { format: "gguf", version, alignment, model: verdict, metadata, tensors };
        let line = serde_json::to_string(&json).context("kiln::inspect::json", || "write it as JSON".into())?;
        return Ok(line + "\n");
    }
    let mut text = Summary { gguf, model: model.as_ref().ok() }.to_string();
    if let Err(problem) = model {
        text += &format!("\nkiln cannot build it: {problem}\n");
    }
    if tensors {
        text += "\ntensors\n";
        text.extend(gguf.tensors.iter().map(line));
    }
    Ok(text)
}

fn json_tensor<'a>(tensor: &'a TensorInfo) -> JsonTensor<'a> {
    let TensorInfo { name, shape, ggml, range } = tensor;
    JsonTensor { name, shape, ggml_type: ggml.name, offset: range.start, bytes: range.end - range.start }
}

fn line(tensor: &TensorInfo) -> String {
    let TensorInfo { name, shape, ggml, range } = tensor;
    let (name, shape) = (Value::Str(name).to_string(), format!("{shape:?}"));
    format!("  {name:<32}{:<8}{shape:<16}{:>10}\n", ggml.name, base::bytes(range.end - range.start))
}
