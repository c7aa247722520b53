//! The structure of the source: which modules may use which others, and rules for files.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module and the modules that it may use, as in the layers of `docs/architecture.md`.
const LAYERS: [(&str, &[&str]); 18] = [
    ("base", &[]),
    ("model", &["base"]),
    ("qnn", &["base"]),
    ("action", &["base"]),
    ("store", &["action", "base"]),
    ("plan", &["action", "base"]),
    ("events", &["action", "base"]),
    ("execute", &["store", "action", "base"]),
    ("artifact", &["action", "model", "base"]),
    ("lower", &["action", "model", "qnn", "base"]),
    (
        "compile",
        &["lower", "artifact", "action", "model", "qnn", "base"],
    ),
    ("run", &["artifact", "action", "model", "qnn", "base"]),
    ("device", &["artifact", "action", "base"]),
    ("report", &["artifact", "action", "model", "base"]),
    (
        "stages",
        &[
            "device", "report", "compile", "run", "artifact", "action", "model", "qnn", "base",
        ],
    ),
    (
        "engine",
        &["plan", "events", "execute", "store", "action", "base"],
    ),
    (
        "records",
        &["engine", "plan", "events", "store", "action", "base"],
    ),
    (
        "cli",
        &[
            "records", "stages", "engine", "plan", "events", "execute", "store", "action", "model",
            "qnn", "base",
        ],
    ),
];

const MAX_LINES: usize = 670;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The relative paths and texts of all Rust files below `folder`.
fn rust_files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut files = vec![];
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push((
                    path.strip_prefix(folder).unwrap().into(),
                    fs::read_to_string(&path).unwrap(),
                ));
            }
        }
    }
    files
}

/// The modules that `text` uses: `crate::MODULE`, `kiln::MODULE`, and all in
/// `crate::{MODULE::..., MODULE}`. Comments are ignored.
fn modules_used(text: &str) -> Vec<String> {
    let code: Vec<&str> = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let code = code.join(" ");
    let word = |text: &str| {
        text.trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let mut modules: Vec<String> = vec![];
    let mut paths: Vec<&str> = code.split("crate::").skip(1).collect();
    paths.extend(code.split("use kiln::").skip(1));
    for after in paths {
        match after.strip_prefix('{') {
            None => modules.push(word(after)),
            Some(group) => {
                let mut depth = 0;
                let mut rest = group;
                modules.push(word(rest));
                while let Some(at) = rest.find(['{', '}', ',']) {
                    match rest.as_bytes()[at] {
                        b'{' => depth += 1,
                        b'}' if depth == 0 => break,
                        b'}' => depth -= 1,
                        _ if depth == 0 => modules.push(word(&rest[at + 1..])),
                        _ => {}
                    }
                    rest = &rest[at + 1..];
                }
            }
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

#[test]
fn modules_used_finds_all_import_forms() {
    let text = "use crate::base::{A, B};\nuse crate::{plan, store::{C, D}, stages};\n// \
                crate::engine\nlet x = crate::qnn::y();";
    assert_eq!(
        modules_used(text),
        ["base", "plan", "store", "stages", "qnn"]
    );
}

#[test]
fn modules_use_only_the_layers_below_them() {
    let mut wrong = vec![];
    for (path, text) in rust_files(&root().join("src")) {
        let Some((module, _)) = path.to_str().unwrap().split_once('/') else {
            continue;
        };
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
            panic!("src/{module} is in no layer: add it here and in docs/architecture.md");
        };
        for used in modules_used(&text) {
            if used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!(
                    "src/{} uses crate::{used}; `{module}` may use {allowed:?}",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Stages share `artifact`, `run` and `compile`, and do not import each other.
#[test]
fn no_stage_imports_another() {
    let mut wrong = vec![];
    for (path, text) in rust_files(&root().join("src/stages")) {
        let file = path.to_str().unwrap();
        let is_list = file == "mod.rs";
        let is_top = !file.contains('/') || file.ends_with("/mod.rs");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let leaves = code.contains("crate::stages")
                || code.contains("super::super::")
                || is_top && code.replace("super::*", "").contains("super::");
            if leaves && !is_list {
                wrong.push(format!("src/stages/{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The files that may contain `unsafe`.
const UNSAFE: [&str; 4] = [
    "qnn/",
    "store/map.rs",
    "model/quant/kernels/",
    "model/reference/matrix.rs",
];

#[test]
fn unsafe_code_is_only_in_listed_files() {
    let mut wrong = vec![];
    for (path, text) in rust_files(&root().join("src")) {
        let path = path.display().to_string();
        if text.contains("unsafe_code") && !UNSAFE.iter().any(|place| path.starts_with(place)) {
            wrong.push(path);
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe code outside {UNSAFE:?}: {wrong:?}"
    );
}

#[test]
fn files_are_short_and_complete() {
    let mut wrong = vec![];
    for folder in ["src", "tests", "benches"] {
        for (path, text) in rust_files(&root().join(folder)) {
            let path = format!("{folder}/{}", path.display());
            let lines = text.lines().count();
            if lines > MAX_LINES {
                wrong.push(format!(
                    "{path} has {lines} lines, at most {MAX_LINES}: split it by topic"
                ));
            }
            for name in ["todo", "unimplemented"] {
                if text.contains(&format!("{name}!(")) {
                    wrong.push(format!("{path} contains `{name}!`"));
                }
            }
            if path.ends_with("/mod.rs") && !text.starts_with("//!") {
                wrong.push(format!("{path} has no description: begin it with `//!`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A code that nothing uses is removed from the table.
#[test]
fn every_code_is_used() {
    let mut used = String::new();
    for (path, text) in rust_files(&root().join("src")) {
        if !path.ends_with("base/code.rs") {
            used += &text;
        }
    }
    let mut unused = vec![];
    for code in kiln::base::Code::ALL {
        let name = format!("Code::{code:?}");
        let is_whole = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        if !used.split(&name).skip(1).any(is_whole) {
            unused.push(name);
        }
    }
    assert!(unused.is_empty(), "in src/base/code.rs: {unused:?}");
}
