//! What a plan must know of its model, from as little as there is at hand: a URL, and the header of
//! a local file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::pieces::{Pieces, whole_name};
use crate::action::{Inputs, Registry};
use crate::base::{Code, Context, Problem, Result, bytes, head, shown_line};
use crate::cli::inspect::{START_BYTES, open_all, unknown, with_headers};
use crate::model::decoder::arch::{model_facts, model_warnings};
use crate::model::gguf::{Gguf, MAGIC, Value};

/// The model.
pub struct Model {
    /// From what its file is called.
    pub name: String,
    /// Where the file is, as the plan is to say it.
    pub url: String,
    /// How it comes from there.
    pub pieces: Pieces,
    /// One line for people.
    pub about: String,
    /// What only the file itself can tell.
    pub local: Option<Local>,
}

/// What the file itself tells.
pub struct Local {
    /// Of the bytes of each of its files, in hexadecimal.
    pub sha256: Vec<String>,
    /// Tokens that the model was trained to see.
    pub context: u32,
    /// What is odd about it and changes nothing.
    pub warnings: Vec<String>,
}

/// What the file at `url` is called. Asks the stage `fetch`, which refuses what it cannot fetch.
pub fn file_name(url: &str, stages: &Registry) -> Result<String> {
    let no_fetch = || Problem::new(Code::CallUrl, "there is no stage kind `fetch`");
    let fetch = stages.get("fetch").ok_or_else(no_fetch)?;
    let params = json!({ "url": url });
    if let Err(problems) = fetch.check(&params, &[])
        && let Some(wrong) = problems.into_iter().next()
    {
        return Err(match Path::new(url).exists() {
            true => wrong
                .problem
                .help(format!("for a file of this machine write file:{url}")),
            false => wrong.problem,
        });
    }
    let orders = fetch.expand(&params, &Inputs::default())?;
    let asked = orders
        .first()
        .and_then(|order| order.params["file"].as_str())
        .unwrap_or_default();
    // Of a package it is asked for with the package's own name before it.
    let file = if url.starts_with("pypi:") {
        asked.rsplit('#').next().unwrap_or_default()
    } else {
        asked
    };
    Ok(file.rsplit('/').next().unwrap_or_default().into())
}

/// What a plan of the model in `file` is called: after the whole file, in the letters that names of
/// plans have.
pub fn plan_name(file: &str) -> String {
    let lower = whole_name(file).to_ascii_lowercase();
    let stem = lower.strip_suffix(".gguf").unwrap_or(&lower);
    let good =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let name: String = stem
        .chars()
        .map(|c| if good(c) { c } else { '-' })
        .take(100)
        .collect();
    match name.trim_start_matches(['.', '_', '-']) {
        "" => "model".into(),
        name => name.into(),
    }
}

impl Model {
    /// Looks at the model at `url`, whose file is called `file`, for a plan in `folder`.
    pub fn look(url: &str, file: &str, folder: &Path) -> Result<Model> {
        let seen = match url.strip_prefix("file:") {
            Some(path) => seen_from(folder, path)?,
            None => url.into(),
        };
        let pieces = Pieces::of(&seen, file)?;
        let name = plan_name(file);
        match (url.strip_prefix("file:"), &pieces) {
            // Of a file that was cut the header is not all there.
            (Some(path), Pieces::Whole | Pieces::Split(_)) => {
                let (about, local) = read(Path::new(path)).map_err(|problem| {
                    problem.within(format!("failed to make a plan for {path}"))
                })?;
                Ok(Model {
                    name,
                    url: seen,
                    pieces,
                    about,
                    local: Some(local),
                })
            }
            _ => {
                let about = format!("{}, of which only the name was read.", shown_line(file));
                Ok(Model {
                    name,
                    url: seen,
                    pieces,
                    about,
                    local: None,
                })
            }
        }
    }
}

/// A relative path in a plan starts from the folder of the plan.
fn seen_from(folder: &Path, path: &str) -> Result<String> {
    let absolute = |path: &Path| -> Result<PathBuf> {
        std::path::absolute(path)
            .context(Code::CallUnreadable, || format!("find {}", path.display()))
    };
    let path = absolute(Path::new(path))?;
    let path = path.strip_prefix(absolute(folder)?).unwrap_or(&path);
    Ok(format!("file:{}", path.display()))
}

fn read(path: &Path) -> Result<(String, Local)> {
    let mut files = open_all(path)?;
    let start = head(path, START_BYTES).context(Code::CallUnreadable, || "read it".into())?;
    if !start.starts_with(&MAGIC) {
        return Err(unknown(path, &start));
    }
    let (about, context, warnings) = with_headers(&mut files, |gguf| {
        let facts = model_facts(gguf)?;
        let name = gguf.metadata.get::<Value>("general.name")?;
        let name = name.map_or_else(
            || "A model without a name".into(),
            |name| format!("`{name}`"),
        );
        let (architecture, layers, mix) = (&facts.architecture, facts.block_count, mix(gguf));
        let text = gguf.tokenizer_problem().map_or(String::new(), |problem| {
            format!(" No stage can read or write its text: {}.", problem.message)
        });
        let about = format!("{name}: {architecture}, {layers} layers, {mix}.{text}");
        let warnings = model_warnings(gguf, &facts);
        // It becomes a comment of the plan: a line end in it would begin something else.
        Ok((shown_line(&about), facts.context_length, warnings))
    })?;
    Ok((
        about,
        Local {
            sha256: files.iter_mut().map(sha256).collect::<Result<_>>()?,
            context,
            warnings,
        },
    ))
}

/// The types of its tensors, most bytes first.
fn mix(gguf: &Gguf) -> String {
    let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in &gguf.tensors {
        *sizes.entry(tensor.ggml.name).or_default() += tensor.range.end - tensor.range.start;
    }
    let mut sizes: Vec<(&str, u64)> = sizes.into_iter().collect();
    sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    sizes
        .iter()
        .map(|(name, size)| format!("{name} {}", bytes(*size)))
        .collect::<Vec<_>>()
        .join(", ")
}

fn sha256(file: &mut File) -> Result<String> {
    let read = |file: &mut File| -> std::io::Result<String> {
        file.rewind()?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => {
                    return Ok(hasher
                        .finalize()
                        .iter()
                        .map(|byte| format!("{byte:02x}"))
                        .collect());
                }
                count => hasher.update(&buffer[..count]),
            }
        }
    };
    read(file).context(Code::CallUnreadable, || "read it".into())
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
    fn a_path_is_spelled_as_the_plan_sees_it() {
        assert_eq!(
            seen_from(Path::new("/p/plans"), "/p/plans/m/a.gguf").unwrap(),
            "file:m/a.gguf"
        );
        assert_eq!(
            seen_from(Path::new("/p/plans"), "/p/a.gguf").unwrap(),
            "file:/p/a.gguf"
        );
    }
}
