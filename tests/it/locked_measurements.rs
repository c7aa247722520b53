//! Locks and measurements: measured values may differ in the last digits on another processor, so a
//! lock does not contain them.

use std::fs;

use crate::support::test_program::{Project, without_digests};
use serde_json::{Value, json};

/// A measurement, and another one derived from it.
const PLAN: &str = r#"
[plan]
name = "shop"
[stage.clay]
kind = "fetch"
url = "file:clay.txt"
[stage.weight]
kind = "gauge"
from = "clay"
random = true
keep = true
[stage.report]
kind = "gauge"
from = "weight"
text = "heavy"
"#;

fn locked(plan: &str) -> Project {
    let project = Project::open();
    project.write("shop.toml", plan);
    project.stdout("build shop.toml --lock");
    project
}

/// A locked build with an empty cache, as on another machine.
fn elsewhere(project: &Project, call: &str) -> (i32, String, String) {
    project.kiln(
        &format!("build shop.toml --locked --cache elsewhere {call}"),
        &[],
    )
}

#[test]
fn measured_outputs_are_not_locked() {
    let project = locked(PLAN);
    let (code, output, errors) = elsewhere(&project, "");
    assert_eq!(code, 0, "{errors}");
    assert!(
        output.contains("measured values differ from the lock file: report, weight"),
        "{output}"
    );
    let output = project.stdout("verify shop.toml");
    let figures = ["report/out", "weight/out"]
        .map(|file| format!("{file}: measured values differ from the lock file\n"));
    assert!(
        output.starts_with(&figures.concat()) && output.contains("\n2 files, "),
        "{output}"
    );

    // A changed artifact is replaced by the value measured here.
    fs::write(project.path("out/shop/weight/out"), "light").unwrap();
    let file = fs::File::options()
        .append(true)
        .open(project.path("out/shop/weight/out"))
        .unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let (code, _, errors) = elsewhere(&project, "");
    assert_eq!(code, 0, "written again: {errors}");
    assert!(!project.read("out/shop/weight/out").contains("light"));
    // A missing file and a link are errors.
    fs::remove_file(project.path("out/shop/weight/out")).unwrap();
    assert_eq!(project.kiln("verify shop.toml", &[]).0, 3);
    std::os::unix::fs::symlink("/etc/hostname", project.path("out/shop/weight/out")).unwrap();
    assert_eq!(project.kiln("verify shop.toml", &[]).0, 3);
}

#[test]
fn outputs_derived_from_measurements_are_locked() {
    let made =
        |text: &str| format!("{PLAN}[stage.ware]\nkind = \"make\"\nfrom = \"weight\"\n{text}");
    let project = locked(&made(""));
    let (code, output, _) = elsewhere(&project, "");
    let output = without_digests(&output);
    assert!(
        code == 3 && output.contains("ware   input  follows from weight"),
        "{output}"
    );
    // An output that does not depend on the measured bytes is the same.
    let project = locked(&made("blind = true\n"));
    let (code, _, errors) = elsewhere(&project, "");
    assert_eq!(code, 0, "{errors}");
}

#[test]
fn an_edited_lock_cannot_mark_a_stage_as_measured() {
    let project = locked(&format!(
        "{PLAN}[stage.ware]\nkind = \"make\"\ntext = \"pot\"\n"
    ));
    let lock = project.read("shop.lock");
    let (head, ware) = lock.split_once("[stage.ware]").unwrap();
    project.write(
        "shop.lock",
        &format!(
            "{head}[stage.ware]{}",
            ware.replacen("keep = true", "keep = true\nmeasured = true", 1)
        ),
    );
    fs::remove_file(project.path("out/shop/ware/out")).unwrap();
    fs::write(project.path("out/shop/ware/out"), "forged").unwrap();
    assert_eq!(project.kiln("verify shop.toml", &[]).0, 3);
    let (code, output, _) = project.kiln("build shop.toml --locked", &[]);
    assert!(
        code == 3 && output.contains("measured: true -> false"),
        "{output}"
    );
}

#[test]
fn a_truncated_or_edited_lock_is_rejected() {
    let project = locked(&format!(
        "{PLAN}[stage.ware]\nkind = \"make\"\ntext = \"pot\"\n"
    ));
    let lock = project.read("shop.lock");
    let (head, _) = lock.rsplit_once("[stage.weight.artifacts").unwrap();
    project.write("shop.lock", head);
    for call in ["verify shop.toml", "build shop.toml --locked"] {
        let (code, _, errors) = project.kiln(call, &[]);
        assert!(
            code == 2 && errors.contains("has no artifact of `weight`"),
            "{call}: {errors}"
        );
    }
    let (head, tail) = lock.split_once("[stage.ware.artifacts").unwrap();
    let (before, digest) = tail.split_once("sha256 = \"").unwrap();
    let other = if digest.starts_with('0') { "1" } else { "0" };
    project.write(
        "shop.lock",
        &format!(
            "{head}[stage.ware.artifacts{before}sha256 = \"{other}{}",
            &digest[1..]
        ),
    );
    let (code, output, _) = project.kiln("build shop.toml --locked", &[]);
    assert!(
        code == 3 && output.contains("the lock has other files"),
        "{output}"
    );
}

#[test]
fn optional_stages_may_be_missing_in_a_lock() {
    let project = locked(&format!(
        "{PLAN}[stage.ware]\nkind = \"make\"\ntext = \"pot\"\noptional = true\n"
    ));
    assert!(!project.read("shop.lock").contains("[stage.ware]"));
    project.stdout("build shop.toml --locked");
    project.stdout("build shop.toml ware --locked");
}

#[test]
fn a_partial_locked_build_ignores_unused_tools() {
    let project = locked(
        &PLAN
            .replace(
                "[stage.clay]",
                "[tools]\noven = { url = \"file:oven.so\" }\n[stage.clay]",
            )
            .replace("random", "oven = true\nrandom"),
    );
    let (code, _, errors) = elsewhere(&project, "report");
    assert_eq!(code, 0, "{errors}");
}

#[test]
fn a_changed_input_of_a_measurement_is_reported() {
    let project = locked(PLAN);
    project.write("clay.txt", "dry");
    let (code, output, _) = elsewhere(&project, "--json");
    assert_eq!(code, 3, "{output}");
    let line = output
        .lines()
        .find(|line| line.contains("\"locked\""))
        .unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let differences = line["differs"].as_array().unwrap();
    let stages: Vec<&Value> = differences.iter().map(|one| &one["stage"]).collect();
    assert_eq!(stages, ["clay", "weight"]);
    assert_eq!(line["figures"], json!(["report", "weight"]));
}
