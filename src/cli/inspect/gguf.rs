//! Descriptions of GGUF files. Only the header is read, so that a large model takes no longer than
//! a small one.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use serde::Serialize;

use crate::action::Registry;
use crate::base::{self, Code, Context, Problem, Result, open_file};
use crate::cli::foresee::{self, Verdict};
use crate::model::decoder::ModelFacts;
use crate::model::decoder::arch::{model_facts, model_warnings};
use crate::model::gguf::{ByteOrder, Gguf, Prefix, TensorInfo, Value, files_of};
use crate::model::summary::{Scalars, Summary};

/// Bytes of a file that are read first. A header with a vocabulary has up to about 10 MB.
const FIRST_BYTES: u64 = 16 << 20;

/// Size limit of a header. The largest vocabularies have 20 MB.
const MAX_HEADER_BYTES: u64 = 128 << 20;

/// Minimum of [`FIRST_BYTES`] for each file of a split model.
const FIRST_BYTES_OF_PART: u64 = 1 << 20;

/// The description with `--json`.
#[derive(Serialize)]
struct Json<'a> {
    format: &'static str,
    version: u32,
    alignment: u32,
    byte_order: &'static str,
    files: usize,
    /// What the model is, or why kiln cannot build it.
    #[serde(flatten)]
    model: Outcome,
    /// What kiln can make of the model; empty if it cannot build it.
    products: Vec<Verdict>,
    /// Oddities that do not affect a build.
    warnings: Vec<String>,
    metadata: Scalars<'a>,
    tensors: Vec<JsonTensor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Model(ModelFacts),
    Problem(Problem),
}

#[derive(Serialize)]
struct JsonTensor<'a> {
    name: &'a str,
    shape: &'a [u64],
    #[serde(rename = "type")]
    ggml_type: &'a str,
    /// Index of the file of a split model.
    #[serde(skip_serializing_if = "is_first")]
    file: usize,
    offset: u64,
    bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_first(file: &usize) -> bool {
    *file == 0
}

/// The summary, and the tensors if `tensors`; with `json`, one line with everything. For a file of
/// a split model, the other files are read from the same folder.
pub(super) fn describe(
    path: &Path,
    tensors: bool,
    json: bool,
    stages: &Registry,
) -> Result<String> {
    let mut files = open_model_files(path)?;
    with_headers(&mut files, |gguf| {
        if json {
            describe_json(gguf, stages)
        } else {
            describe_text(gguf, tensors, stages)
        }
    })
}

/// Opens the file at `path`, or all files of its model if it is split, by the file name.
pub(in crate::cli) fn open_model_files(path: &Path) -> Result<Vec<File>> {
    let mut paths = vec![];
    match path.file_name().and_then(OsStr::to_str) {
        Some(name) => {
            for name in files_of(name) {
                paths.push(path.with_file_name(name));
            }
        }
        None => paths.push(path.into()),
    }
    let mut files = vec![];
    for path in paths {
        let file = open_file(&path)
            .context(Code::CallUnreadable, || format!("open {}", path.display()))?;
        files.push(file);
    }
    Ok(files)
}

/// Reads the headers of the `files` of one model and calls `callback` with it.
pub(in crate::cli) fn with_headers<T>(
    files: &mut [File],
    callback: impl FnOnce(&Gguf) -> Result<T>,
) -> Result<T> {
    let mut read_bytes = (FIRST_BYTES / files.len().max(1) as u64).max(FIRST_BYTES_OF_PART);
    loop {
        let mut longest = 0;
        let mut starts = vec![];
        for file in &mut *files {
            let (bytes, file_bytes) = read_start(file, read_bytes)?;
            longest = longest.max(file_bytes);
            starts.push((bytes, file_bytes));
        }
        let mut prefixes = vec![];
        for (bytes, file_bytes) in &starts {
            prefixes.push(Prefix {
                bytes,
                file_bytes: *file_bytes,
            });
        }
        match Gguf::parse_files(&prefixes) {
            Ok(gguf) => return callback(&gguf),
            // The header may be longer than the bytes that were read.
            Err(problem)
                if is_truncated(&problem) && read_bytes < longest.min(MAX_HEADER_BYTES) =>
            {
                read_bytes *= 8
            }
            Err(problem) if is_truncated(&problem) && read_bytes < longest => {
                let message =
                    format!("the header has more than {MAX_HEADER_BYTES} bytes, or is damaged");
                return Err(problem.within(message));
            }
            Err(problem) => return Err(problem),
        }
    }
}

/// Whether parsing may succeed with more bytes of the file.
fn is_truncated(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::ModelGgufTruncated | Code::ModelGgufCount
    )
}

/// The first `bytes` of a file, and its size.
fn read_start(file: &mut File, bytes: u64) -> Result<(Vec<u8>, u64)> {
    let file_bytes = file
        .metadata()
        .context(Code::CallUnreadable, || "get its size".into())?
        .len();
    let mut start = vec![];
    file.rewind()
        .context(Code::CallUnreadable, || "rewind it".into())?;
    file.take(bytes)
        .read_to_end(&mut start)
        .context(Code::CallUnreadable, || "read it".into())?;
    Ok((start, file_bytes))
}

fn describe_json(gguf: &Gguf, stages: &Registry) -> Result<String> {
    let (mut products, mut warnings) = (vec![], vec![]);
    let model = match model_facts(gguf) {
        Ok(facts) => {
            products = foresee::verdicts(gguf, &facts, stages)?;
            warnings = model_warnings(gguf, &facts);
            Outcome::Model(facts)
        }
        Err(problem) => Outcome::Problem(problem),
    };
    let description = Json {
        format: "gguf",
        version: gguf.version,
        alignment: gguf.alignment,
        byte_order: match gguf.order {
            ByteOrder::Big => "big",
            ByteOrder::Little => "little",
        },
        files: gguf.file_count(),
        model,
        products,
        warnings,
        metadata: Scalars(&gguf.metadata),
        tensors: gguf.tensors.iter().map(json_tensor).collect(),
    };
    let line = serde_json::to_string(&description)
        .context(Code::InspectJson, || "write it as JSON".into())?;
    Ok(line + "\n")
}

fn describe_text(gguf: &Gguf, tensors: bool, stages: &Registry) -> Result<String> {
    let facts = model_facts(gguf);
    let model = facts.as_ref().ok();
    let mut text = Summary { gguf, model }.to_string();
    match &facts {
        Ok(facts) => {
            text += "\ncan be made\n";
            for Verdict { product, problem } in foresee::verdicts(gguf, facts, stages)? {
                let answer = match problem {
                    None => "yes".into(),
                    Some(problem) => format!("no: {}", problem.message),
                };
                text += &format!("  {:<17}  {answer}\n", product.name());
            }
            let warnings = model_warnings(gguf, facts);
            if !warnings.is_empty() {
                text.push('\n');
            }
            for warning in warnings {
                text += &format!("warning: {warning}\n");
            }
        }
        Err(problem) => text += &format!("\nkiln cannot build it: {problem}\n"),
    }
    if tensors {
        text += "\ntensors\n";
        for tensor in &gguf.tensors {
            text += &tensor_line(tensor);
        }
    }
    Ok(text)
}

fn json_tensor<'a>(tensor: &'a TensorInfo) -> JsonTensor<'a> {
    JsonTensor {
        name: tensor.name,
        shape: &tensor.shape,
        ggml_type: tensor.ggml.name,
        file: tensor.file,
        offset: tensor.range.start,
        bytes: tensor.range.end - tensor.range.start,
    }
}

fn tensor_line(tensor: &TensorInfo) -> String {
    let name = Value::Str(tensor.name).to_string();
    let shape = format!("{:?}", tensor.shape);
    format!(
        "  {name:<32}{:<8}{shape:<16}{:>10}\n",
        tensor.ggml.name,
        base::bytes(tensor.range.end - tensor.range.start)
    )
}
