//! A GGUF, by its header alone: a model of many gigabytes takes no longer than a small one.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::{self, Code, Context, Problem, Result, open_file};
use crate::model::decoder::arch::{model_facts, model_warnings};
use crate::model::facts::ModelFacts;
use crate::model::gguf::{ByteOrder, Gguf, Prefix, Scalars, Summary, TensorInfo, Value, files_of};

/// How much of a file is read at first. A header with a vocabulary has up to about 10 MB.
const FIRST_BYTES: u64 = 16 << 20;

/// How much of it at most: the largest vocabularies take 20 MB.
const MAX_HEADER_BYTES: u64 = 128 << 20;

/// How much at least of each file of a split model.
const FIRST_BYTES_OF_PART: u64 = 1 << 20;

/// With `--json`: one line.
#[derive(Serialize)]
struct Json<'a> {
    format: &'static str,
    version: u32,
    alignment: u32,
    byte_order: &'static str,
    files: usize,
    /// What the model is, or why kiln cannot build it.
    #[serde(flatten)]
    model: Verdict,
    /// What is odd about it and changes nothing.
    warnings: Vec<String>,
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
    /// Of the files, from 0.
    #[serde(skip_serializing_if = "is_first")]
    file: usize,
    offset: u64,
    bytes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_first(file: &usize) -> bool {
    *file == 0
}

/// The summary, and the tensors if asked for; with `json`, everything in one line. Of a split model
/// any one file is named, and the others are looked for beside it.
pub(super) fn describe(path: &Path, tensors: bool, json: bool) -> Result<String> {
    with_headers(&mut open_all(path)?, |gguf| spell(gguf, tensors, json))
}

/// The files of the model that `path` belongs to by its name, opened.
pub(in crate::cli) fn open_all(path: &Path) -> Result<Vec<File>> {
    let names = path
        .file_name()
        .and_then(|name| name.to_str())
        .map(files_of);
    let paths = names.map_or(vec![path.into()], |names| {
        names.iter().map(|name| path.with_file_name(name)).collect()
    });
    let open = |path: &PathBuf| {
        open_file(path).context(Code::CallUnreadable, || format!("open {}", path.display()))
    };
    paths.iter().map(open).collect()
}

/// Reads the headers of the `files` of one model, and hands it to `take`.
pub(in crate::cli) fn with_headers<T>(
    files: &mut [File],
    take: impl FnOnce(&Gguf) -> Result<T>,
) -> Result<T> {
    let mut read_bytes = (FIRST_BYTES / files.len().max(1) as u64).max(FIRST_BYTES_OF_PART);
    loop {
        let heads = files
            .iter_mut()
            .map(|file| head(file, read_bytes))
            .collect::<Result<Vec<_>>>()?;
        let longest = heads
            .iter()
            .map(|(_, file_bytes)| *file_bytes)
            .max()
            .unwrap_or(0);
        let prefixes: Vec<Prefix> = heads
            .iter()
            .map(|(bytes, file_bytes)| Prefix {
                bytes,
                file_bytes: *file_bytes,
            })
            .collect();
        match Gguf::parse_files(&prefixes) {
            Ok(gguf) => return take(&gguf),
            // Perhaps a header is longer than what was read of it.
            Err(problem) if is_cut(&problem) && read_bytes < longest.min(MAX_HEADER_BYTES) => {
                read_bytes *= 8
            }
            Err(problem) if is_cut(&problem) && read_bytes < longest => {
                let message =
                    format!("the header has more than {MAX_HEADER_BYTES} bytes, if it is one");
                return Err(problem.within(message));
            }
            Err(problem) => return Err(problem),
        }
    }
}

/// Whether more of the file might make it good.
fn is_cut(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::ModelGgufTruncated | Code::ModelGgufCount
    )
}

/// The first bytes of a file, and its length.
fn head(file: &mut File, bytes: u64) -> Result<(Vec<u8>, u64)> {
    let file_bytes = file
        .metadata()
        .context(Code::CallUnreadable, || "ask for its size".into())?
        .len();
    let mut prefix = vec![];
    file.rewind()
        .context(Code::CallUnreadable, || "rewind it".into())?;
    file.take(bytes)
        .read_to_end(&mut prefix)
        .context(Code::CallUnreadable, || "read it".into())?;
    Ok((prefix, file_bytes))
}

fn spell(gguf: &Gguf, tensors: bool, json: bool) -> Result<String> {
    let model = model_facts(gguf);
    let warnings = model
        .as_ref()
        .map_or(vec![], |model| model_warnings(gguf, model));
    if json {
        let verdict = model.map_or_else(Verdict::Problem, Verdict::Model);
        let tensors = gguf.tensors.iter().map(json_tensor).collect();
        let Gguf {
            version,
            alignment,
            metadata,
            ..
        } = gguf;
        let (version, alignment, metadata) = (*version, *alignment, Scalars(metadata));
        let byte_order = if gguf.order == ByteOrder::Big {
            "big"
        } else {
            "little"
        };
        let files = gguf.file_count();
        let json = Json {
            format: "gguf",
            version,
            alignment,
            byte_order,
            files,
            model: verdict,
            warnings,
            metadata,
            tensors,
        };
        let line = serde_json::to_string(&json)
            .context(Code::InspectJson, || "write it as JSON".into())?;
        return Ok(line + "\n");
    }
    let mut text = Summary {
        gguf,
        model: model.as_ref().ok(),
    }
    .to_string();
    if !warnings.is_empty() {
        text.push('\n');
    }
    for warning in warnings {
        text += &format!("warning: {warning}\n");
    }
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
    let TensorInfo {
        name,
        shape,
        ggml,
        range,
        file,
    } = tensor;
    JsonTensor {
        name,
        shape,
        ggml_type: ggml.name,
        file: *file,
        offset: range.start,
        bytes: range.end - range.start,
    }
}

fn line(tensor: &TensorInfo) -> String {
    let TensorInfo {
        name,
        shape,
        ggml,
        range,
        ..
    } = tensor;
    let (name, shape) = (Value::Str(name).to_string(), format!("{shape:?}"));
    format!(
        "  {name:<32}{:<8}{shape:<16}{:>10}\n",
        ggml.name,
        base::bytes(range.end - range.start)
    )
}
