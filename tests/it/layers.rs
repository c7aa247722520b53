//! The structure of the source: which modules may use which others, and rules for files.

use std::collections::{BTreeMap, BTreeSet};
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
            "records", "stages", "engine", "plan", "events", "execute", "artifact", "store",
            "action", "model", "qnn", "base",
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

/// The names of a path: `super`, `digest`, `Digest`.
type Names = Vec<String>;

/// The words, `::` and other characters of `text` without its comments.
fn tokens(text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = vec![];
    for line in text.lines() {
        let mut rest = line.split("//").next().unwrap_or_default().trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                _ if rest.starts_with("::") => 2,
                _ => first.len_utf8(),
            };
            let (token, after) = rest.split_at(length);
            tokens.push(token);
            rest = after.trim_start();
        }
    }
    tokens
}

/// Adds the paths of the use tree at the front of `tokens` to `paths`, each after the names of
/// `prefix` and with the name that it is imported as. Returns the tokens after the tree.
fn read_tree<'a, 't>(
    mut tokens: &'a [&'t str],
    prefix: &[String],
    paths: &mut Vec<(String, Names)>,
) -> &'a [&'t str] {
    let Some((first, mut rest)) = tokens.split_first() else {
        return tokens;
    };
    if *first == "{" {
        tokens = rest;
        while !matches!(tokens, [] | ["}" | ";", ..]) {
            tokens = read_tree(tokens, prefix, paths);
            tokens = tokens.strip_prefix(&[","]).unwrap_or(tokens);
        }
        return tokens.get(1..).unwrap_or_default();
    }
    let path = [prefix, &[first.to_string()]].concat();
    if let ["::", after @ ..] = rest {
        return read_tree(after, &path, paths);
    }
    let mut name = *first;
    if let ["as", alias, after @ ..] = rest {
        (name, rest) = (alias, after);
    }
    paths.push((name.into(), path));
    rest
}

/// The paths of all `use` in `text`, with the imported names, and all other paths that begin with
/// `crate` or `super`, with an empty name.
fn paths(text: &str) -> Vec<(String, Names)> {
    let tokens = tokens(text);
    let mut rest = tokens.as_slice();
    let (mut imports, mut others) = (vec![], vec![]);
    while let [_, after @ ..] = rest {
        rest = match rest {
            ["use", ..] => read_tree(after, &[], &mut imports),
            ["crate" | "super", "::", ..] => read_tree(rest, &[], &mut others),
            _ => after,
        };
    }
    for (_, path) in others {
        imports.push((String::new(), path));
    }
    imports
}

/// The modules that `text` uses: `crate::MODULE`, `kiln::MODULE`, and all in
/// `crate::{MODULE::..., MODULE}`.
fn modules_used(text: &str) -> Vec<String> {
    let mut modules = vec![];
    for (_, path) in paths(text) {
        if let [first, module, ..] = path.as_slice()
            && (first == "crate" || first == "kiln")
        {
            modules.push(module.clone());
        }
    }
    modules.dedup();
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

/// The modules of the source, without unit tests, and the paths in each.
struct Modules(BTreeMap<Names, Vec<(String, Names)>>);

impl Modules {
    fn read() -> Self {
        let mut modules = BTreeMap::new();
        let mut of_tests = vec![];
        for (file, text) in rust_files(&root().join("src")) {
            let file = file.with_extension("").display().to_string();
            let mut names: Names = file.split('/').map(String::from).collect();
            names.pop_if(|name| ["mod", "lib", "main"].contains(&name.as_str()));
            let mut code = text.as_str();
            for (at, start) in text.match_indices("#[cfg(test)]\nmod ") {
                match text[at + start.len()..].split_once([';', ' ']) {
                    Some(("tests", _)) => code = &text[..at],
                    Some((module, _)) => of_tests.push([&names[..], &[module.into()]].concat()),
                    None => {}
                }
            }
            modules.insert(names, paths(code));
        }
        modules.retain(|names, _| !of_tests.contains(names));
        Modules(modules)
    }

    /// The module that defines what module `at` writes as `path`; `at` if it is not of this crate.
    fn defining(&self, at: &[String], path: &[String]) -> Names {
        let levels = path.iter().take_while(|name| *name == "super").count();
        let names = match path.first().map(String::as_str) {
            Some("crate") => path[1..].to_vec(),
            Some("self") => [at, &path[1..]].concat(),
            _ => [&at[..at.len().saturating_sub(levels)], &path[levels..]].concat(),
        };
        let mut length = names.len();
        while !self.0.contains_key(&names[..length]) {
            length -= 1;
        }
        let module = &names[..length];
        for (name, source) in &self.0[module] {
            if names.get(length) == Some(name) && source.len() > 1 {
                return self.defining(module, source);
            }
        }
        module.to_vec()
    }
}

/// The imports between the files and folders of a folder form no circle. A folder counts as a whole,
/// without its `mod.rs`.
#[test]
fn siblings_do_not_import_each_other() {
    let modules = Modules::read();
    let mut folders: BTreeMap<Names, BTreeMap<[String; 2], String>> = BTreeMap::new();
    for (from, paths) in &modules.0 {
        for (_, path) in paths {
            let to = modules.defining(from, path);
            let same = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(user), Some(used)) = (from.get(same), to.get(same)) {
                let line = format!("{} uses {}", from.join("/"), to.join("/"));
                let imports = folders.entry(to[..same].to_vec()).or_default();
                imports.insert([user.clone(), used.clone()], line);
            }
        }
    }
    let mut wrong = vec![];
    for (folder, mut imports) in folders {
        // Children that import no sibling or that no sibling imports are in no circle.
        let mut count = 0;
        while count != imports.len() {
            count = imports.len();
            let users: BTreeSet<String> = imports.keys().map(|[user, _]| user.clone()).collect();
            imports.retain(|[_, used], _| users.contains(used));
            let used: BTreeSet<String> = imports.keys().map(|[_, used]| used.clone()).collect();
            imports.retain(|[user, _], _| used.contains(user));
        }
        if !imports.is_empty() {
            wrong.push(format!("in src/{}:", folder.join("/")));
            wrong.extend(imports.into_values());
        }
    }
    assert!(wrong.is_empty(), "circles of imports {}", wrong.join("\n"));
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
