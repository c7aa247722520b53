//! What a plan needs to know of its model: from the URL, and from the header of a local file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::layout::{FileLayout, model_file_name};
use crate::action::{Inputs, Registry};
use crate::base::{Code, Context, Problem, Result, bytes, head, shown_line};
use crate::cli::foresee::{self, Product, Verdict};
use crate::cli::inspect::{MAGIC_BYTES, open_model_files, unsupported_format, with_headers};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::arch::{model_facts, model_warnings};
use crate::model::gguf::{Gguf, MAGIC, Value};

/// The model of a plan.
pub(super) struct Model {
    /// The name of the plan, from the file name.
    pub name: String,
    /// The URL of the file, as written in the plan.
    pub url: String,
    /// How the file is stored there.
    pub layout: FileLayout,
    /// A description in one line.
    pub about: String,
    /// What only the file itself tells; `None` for a remote file.
    pub local: Option<LocalModel>,
}

/// A model whose files are on this machine.
pub(super) struct LocalModel {
    /// The SHA-256 of each of its files, in hexadecimal.
    pub sha256: Vec<String>,
    /// The model.
    pub spec: DecoderSpec,
    /// What can be made of it.
    pub verdicts: Vec<Verdict>,
    /// Oddities that do not affect a build.
    pub warnings: Vec<String>,
}

/// The name of the file at `url`. Fails if the stage kind `fetch` cannot fetch it.
pub(super) fn file_name(url: &str, stages: &Registry) -> Result<String> {
    let Some(fetch) = stages.get("fetch") else {
        let message = "there is no stage kind `fetch`";
        return Err(Problem::new(Code::CallUrl, message));
    };
    let params = json!({ "url": url });
    if let Err(problems) = fetch.check(&params, &[])
        && let Some(wrong) = problems.into_iter().next()
    {
        if Path::new(url).exists() {
            let help = format!("for a local file, write file:{url}");
            return Err(wrong.problem.help(help));
        }
        return Err(wrong.problem);
    }
    let orders = fetch.expand(&params, &Inputs::default())?;
    let mut file = match orders.first() {
        Some(order) => order.params["file"].as_str().unwrap_or_default(),
        None => "",
    };
    // For a file of a package, the name of the package comes first.
    if url.starts_with("pypi:") {
        file = file.rsplit('#').next().unwrap_or_default();
    }
    Ok(file.rsplit('/').next().unwrap_or_default().into())
}

/// The name of a plan for the model in `file`: the name of the complete file, in the characters
/// that names of plans have.
pub(super) fn plan_name(file: &str) -> String {
    let file = model_file_name(file).to_ascii_lowercase();
    let stem = file.strip_suffix(".gguf").unwrap_or(&file);
    let mut name = String::new();
    for c in stem.chars().take(100) {
        let is_allowed =
            c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
        name.push(if is_allowed { c } else { '-' });
    }
    match name.trim_start_matches(['.', '_', '-']) {
        "" => "model".into(),
        name => name.into(),
    }
}

impl Model {
    /// Whether `product` can be made of it, as far as is known.
    pub(super) fn has(&self, product: Product) -> bool {
        let Some(local) = &self.local else {
            return true;
        };
        let is_refused =
            |verdict: &Verdict| verdict.product == product && verdict.problem.is_some();
        !local.verdicts.iter().any(is_refused)
    }

    /// The model in `file` at `url`, for a plan in `folder`.
    pub(super) fn read(url: &str, file: &str, folder: &Path, stages: &Registry) -> Result<Model> {
        let path = url.strip_prefix("file:");
        let url = match path {
            Some(path) => url_relative_to(folder, path)?,
            None => url.into(),
        };
        let layout = FileLayout::of(&url, file)?;
        let (about, local) = match path {
            // The first part of a file may lack the end of the header.
            Some(path) if !matches!(layout, FileLayout::Parts(_)) => {
                let (about, local) = match read_local(Path::new(path), stages) {
                    Ok(model) => model,
                    Err(problem) => {
                        let message = format!("failed to make a plan for {path}");
                        return Err(problem.within(message));
                    }
                };
                (about, Some(local))
            }
            _ => {
                let file = shown_line(file);
                (format!("{file}, of which only the name is known."), None)
            }
        };
        Ok(Model {
            name: plan_name(file),
            url,
            layout,
            about,
            local,
        })
    }
}

/// The URL of a local file for a plan in `folder`: relative if the file is below the folder.
fn url_relative_to(folder: &Path, path: &str) -> Result<String> {
    let folder = absolute_path(folder)?;
    let path = absolute_path(Path::new(path))?;
    let path = path.strip_prefix(folder).unwrap_or(&path);
    Ok(format!("file:{}", path.display()))
}

fn absolute_path(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(Code::CallUnreadable, || format!("find {}", path.display()))
}

/// The description of a local model, and what its files tell.
fn read_local(path: &Path, stages: &Registry) -> Result<(String, LocalModel)> {
    let mut files = open_model_files(path)?;
    let start = head(path, MAGIC_BYTES).context(Code::CallUnreadable, || "read it".into())?;
    if !start.starts_with(&MAGIC) {
        return Err(unsupported_format(path, &start));
    }
    let (about, spec, verdicts, warnings) = with_headers(&mut files, |gguf| {
        let facts = model_facts(gguf)?;
        let name = match gguf.metadata.get::<Value>("general.name")? {
            Some(name) => format!("`{name}`"),
            None => "A model without a name".into(),
        };
        let mut about = format!(
            "{name}: {}, {} layers, {}.",
            facts.architecture,
            facts.block_count,
            tensor_types(gguf)
        );
        let verdicts = foresee::verdicts(gguf, &facts, stages)?;
        for Verdict { product, problem } in &verdicts {
            match problem {
                None => {}
                Some(problem) if *product == Product::Binary => return Err(problem.clone()),
                Some(problem) => {
                    about += &format!(" No {}: {}.", product.name(), problem.message);
                }
            }
        }
        let warnings = model_warnings(gguf, &facts);
        // It becomes a comment in the plan, where a line break would end the comment.
        let about = shown_line(&about);
        Ok((about, DecoderSpec::try_from(facts)?, verdicts, warnings))
    })?;
    let mut digests = vec![];
    for file in &mut files {
        digests.push(sha256(file).context(Code::CallUnreadable, || "read it".into())?);
    }
    let local = LocalModel {
        sha256: digests,
        spec,
        verdicts,
        warnings,
    };
    Ok((about, local))
}

/// The types of the tensors with their sizes, the largest first.
fn tensor_types(gguf: &Gguf) -> String {
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in &gguf.tensors {
        *sizes.entry(tensor.ggml.name).or_default() += tensor.range.end - tensor.range.start;
    }
    let mut sizes: Vec<(&str, u64)> = sizes.into_iter().collect();
    sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let mut texts = vec![];
    for (name, size) in sizes {
        texts.push(format!("{name} {}", bytes(size)));
    }
    texts.join(", ")
}

fn sha256(file: &mut File) -> std::io::Result<String> {
    file.rewind()?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    let mut hex = String::new();
    for byte in hasher.finalize() {
        hex += &format!("{byte:02x}");
    }
    Ok(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_named_after_files() {
        let check = |file, expect| assert_eq!(plan_name(file), expect, "{file}");
        check(
            "DeepSeek-R1-Distill-Qwen-1.5B-Q4_0.gguf",
            "deepseek-r1-distill-qwen-1.5b-q4_0",
        );
        check("pot-00002-of-00003.gguf", "pot");
        check("Mein Modell (1).GGUF", "mein-modell--1-");
        check("._ä.gguf", "model");
        check(&"x".repeat(200), &"x".repeat(100));
    }

    #[test]
    fn paths_are_relative_to_the_folder_of_the_plan() {
        assert_eq!(
            url_relative_to(Path::new("/p/plans"), "/p/plans/m/a.gguf").unwrap(),
            "file:m/a.gguf"
        );
        assert_eq!(
            url_relative_to(Path::new("/p/plans"), "/p/a.gguf").unwrap(),
            "file:/p/a.gguf"
        );
    }
}
