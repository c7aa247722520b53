//! Snapshots of what a person sees when something is wrong: the last lines on standard error, without
//! colours, 100 columns wide, and the exit code.
//!
//! A file of `tests/it/problems/` is a list of cases, each with a line `==== NAME`. The text of
//! `plan.toml` follows, then steps: `---- file NAME` with the text of another file, `---- kiln
//! ARGUMENTS` for a call; without a call, it is `kiln check plan.toml`. Last is `---- exit N` with
//! the output of the last call. `KILN_BLESS=1` writes the outputs into the files.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::tiny_gguf::TinyGguf;
use kiln::base::{Class, Code, Problem};
use kiln::cli::Exit;

const CASE: &str = "==== ";
const FILE: &str = "---- file ";
const CALL: &str = "---- kiln ";
const EXIT: &str = "---- exit ";

/// Stands for the folder of a case in its output. As long as the real name, so that lines break
/// at the same words.
const FOLDER: &str = "/tmp/kiln-folder";

#[test]
fn problems_read_as_they_should() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/problems");
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let is_blessed = std::env::var_os("KILN_BLESS").is_some();
    let (mut count, mut differs) = (0, vec![]);
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        let (_, cases) = text.split_once(CASE).expect("a file begins with a case");
        let mut found = String::new();
        for case in cases.split(&format!("\n{CASE}")) {
            count += 1;
            let (asked, expected) = case.split_once(EXIT).unwrap_or((case, ""));
            let asked = asked.trim_end();
            let report = report(asked);
            if format!("{EXIT}{expected}").trim_end() != report {
                differs.push(format!("{}: {asked}\n{report}", path.display()));
            }
            found += &format!("{CASE}{asked}\n{report}\n\n");
        }
        if is_blessed {
            fs::write(&path, found.trim_end().to_string() + "\n").unwrap();
        }
    }
    assert!(count >= 60, "{count} cases");
    assert!(
        is_blessed || differs.is_empty(),
        "{} of {count} reports differ; KILN_BLESS=1 writes them into the files:\n\n{}",
        differs.len(),
        differs.join("\n\n")
    );
}

/// Runs the steps of a case in a new folder. Yields exit code and output of the last call.
fn report(case: &str) -> String {
    let folder = tempfile::Builder::new()
        .prefix("kiln-")
        .rand_bytes(6)
        .tempdir_in("/tmp")
        .unwrap();
    let folder = folder.path();
    assert_eq!(folder.to_str().unwrap().len(), FOLDER.len());
    let mut model = TinyGguf::llama().write();
    fs::write(folder.join("model.gguf"), &model).unwrap();
    // In every number type, these bytes are a NaN.
    let half = model.len() / 2;
    model[half..].fill(0xff);
    fs::write(folder.join("damaged.gguf"), model).unwrap();
    // The first line is the name of the case.
    let (_, steps) = case.split_once('\n').unwrap_or((case, ""));
    let steps = format!("{FILE}plan.toml\n{steps}\n");
    let mut last = None;
    for step in steps.split("---- ").skip(1) {
        let step = format!("---- {step}");
        let (head, text) = step.split_once('\n').unwrap();
        if let Some(name) = head.strip_prefix(FILE) {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        } else if let Some(call) = head.strip_prefix(CALL) {
            last = Some(kiln(folder, call));
        } else {
            panic!("no step: {head}");
        }
    }
    last.unwrap_or_else(|| kiln(folder, "check plan.toml"))
}

fn kiln(folder: &Path, call: &str) -> String {
    let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
    kiln.args(call.split_whitespace()).current_dir(folder);
    for variable in ["GITHUB_ACTIONS", "KILN_CACHE", "HF_TOKEN", "HF_ENDPOINT"] {
        kiln.env_remove(variable);
    }
    let output = kiln
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let said = said.replace(folder.to_str().unwrap(), FOLDER);
    // The lines before it are the progress of the build.
    let begin = match said.find("\nkiln::") {
        Some(at) if !said.starts_with("kiln::") => at + 1,
        _ => 0,
    };
    let lines: Vec<&str> = said[begin..].lines().map(str::trim_end).collect();
    let report = lines.join("\n");
    format!(
        "{EXIT}{}\n{}",
        output.status.code().unwrap(),
        report.trim_end()
    )
}

/// `docs/plan-format.md` lists the class of every code and the exit code of every class.
#[test]
fn classes_of_codes_are_documented() {
    let doc = include_str!("../../docs/plan-format.md");
    let (_, table) = doc.split_once("| class | exit code | codes |\n").unwrap();
    let rows: Vec<[&str; 3]> = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            cells.try_into().unwrap()
        })
        .collect();
    let words = |row: &[&'static str; 3]| row[2].split('`').skip(1).step_by(2);
    let prefix = |word: &'static str| word.strip_suffix('*');
    for code in Code::ALL {
        let text = code.as_str();
        let named = rows.iter().find(|row| words(row).any(|word| word == text));
        let room = rows.iter().find(|row| {
            words(row)
                .filter_map(prefix)
                .any(|room| text.starts_with(room))
        });
        let row = named.or(room).or(rows.last()).unwrap();
        let class = match row[0] {
            "plan" => Class::Plan,
            "digest" => Class::Digest,
            "tool" => Class::Tool,
            "store" => Class::Store,
            "interrupted" => Class::Interrupted,
            "stage" => Class::Stage,
            other => panic!("{other}"),
        };
        assert_eq!(code.class(), class, "{text}");
        let exit = Exit::of(&Problem::new(code.clone(), ""));
        assert_eq!((exit as u8).to_string(), row[1], "{text}");
    }
    assert_eq!(rows.len(), 6);
}
