//! Receipts, checksums, provenance and `--check`, with the helper program.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::support::fetching::sha256;
use crate::support::test_program::{PLAN, Project, without_digests};
use crate::support::tree::files;
use serde_json::Value;

#[test]
fn sha256sums_match_the_files() {
    let project = Project::open();
    project.stdout("build shop.toml");
    let out = project.path("out/shop");
    let expected: String = ["bill/out", "pots/b/c/out", "ware/out"]
        .map(|path| format!("{}  {path}\n", sha256(&fs::read(out.join(path)).unwrap())))
        .concat();
    assert_eq!(project.read("out/shop/SHA256SUMS"), expected);
    // If the program is installed.
    if let Ok(output) = Command::new("sha256sum")
        .args(["--strict", "-c", "SHA256SUMS"])
        .current_dir(&out)
        .output()
    {
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

#[test]
fn missing_records_are_written_again() {
    let project = Project::open();
    project.stdout("build shop.toml");
    let written = files(&project.path("out"));
    let rebuild = |expected: &str| {
        let output = project.stdout("build shop.toml");
        assert!(output.contains(expected), "{output}");
        assert_eq!(files(&project.path("out")), written);
    };
    rebuild("nothing to do");
    project.write("out/shop/receipt.json", "{}");
    rebuild("written to");
    fs::remove_file(project.path("out/shop/SHA256SUMS")).unwrap();
    rebuild("written to");
    // Notes may be lost.
    fs::remove_dir_all(project.path("cache/notes")).unwrap();
    rebuild("nothing to do");
    // A build of a part writes a receipt of that part, and the next full build replaces it.
    assert!(
        project
            .stdout("build shop.toml bill")
            .contains("written to")
    );
    assert_eq!(project.read("out/shop/SHA256SUMS").lines().count(), 1);
    rebuild("written to");
}

/// The fields that <https://slsa.dev/spec/v1.0/provenance> requires.
#[test]
fn provenance_describes_the_files() {
    let project = Project::open();
    project.stdout("build shop.toml --provenance --set text=jar");
    let text = project.read("out/shop/provenance.json");
    let statement: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let build = &statement["predicate"]["buildDefinition"];
    assert_eq!(build["buildType"], "urn:kiln:build-plan:1");
    assert_eq!(
        (
            &build["externalParameters"]["plan"],
            &build["externalParameters"]["set"]["text"]
        ),
        (&"shop".into(), &"jar".into())
    );
    assert!(
        statement["predicate"]["runDetails"]["builder"]["id"]
            .as_str()
            .unwrap()
            .contains("kiln")
    );
    assert!(
        statement["predicate"]["runDetails"]
            .get("metadata")
            .is_none(),
        "no time is written without SOURCE_DATE_EPOCH"
    );

    let mut subjects = BTreeMap::new();
    for subject in statement["subject"].as_array().unwrap() {
        subjects.insert(
            subject["name"].as_str().unwrap().to_string(),
            subject["digest"].clone(),
        );
    }
    for (path, bytes) in files(&project.path("out/shop")) {
        if path.components().count() == 1 {
            continue; // a record
        }
        let digest = subjects.remove(path.to_str().unwrap()).unwrap();
        assert_eq!(digest["sha256"], sha256(&bytes));
        assert_eq!(digest["blake3"], kiln::base::hash_bytes(&bytes).hex());
    }
    assert!(subjects.is_empty(), "{subjects:?}");
    let dependency = |name: &str| {
        let all = build["resolvedDependencies"].as_array().unwrap();
        let found = all.iter().find(|one| one["name"] == name);
        found.unwrap().clone()
    };
    assert_eq!(
        (
            &dependency("clay")["uri"],
            &dependency("clay")["digest"]["sha256"]
        ),
        (&"file:clay.txt".into(), &sha256(b"wet").into())
    );
    assert_eq!(
        dependency("oven/oven.so")["digest"]["sha256"],
        sha256(b"hot")
    );

    let other = Project::open();
    other.stdout("build shop.toml --provenance --set text=jar");
    assert_eq!(other.read("out/shop/provenance.json"), text);
    let (_, output, _) = other.kiln(
        "build shop.toml --provenance --set text=jar",
        &[("SOURCE_DATE_EPOCH", "951782400")],
    );
    assert!(output.contains("written to"), "{output}");
    assert!(
        other
            .read("out/shop/provenance.json")
            .contains("\"finishedOn\": \"2000-02-29T00:00:00Z\"")
    );
    let (code, _, errors) = other.kiln(
        "build shop.toml --provenance",
        &[("SOURCE_DATE_EPOCH", "today")],
    );
    assert!(
        code == 2 && errors.contains("kiln::call::source_date_epoch"),
        "{errors}"
    );
}

#[test]
fn check_reports_and_keeps_differing_outputs() {
    let project = Project::open();
    let output = project.stdout("build shop.toml --check");
    assert!(
        output.ends_with("checked: 4 parts ran twice with the same bytes\n"),
        "{output}"
    );
    assert!(!project.path("out/shop/differs").exists());

    project.write(
        "shop.toml",
        &PLAN.replace("text = \"${text}\"", "text = \"${text}\"\nrandom = true"),
    );
    let (code, output, errors) = project.kiln("build shop.toml --check", &[]);
    let text = without_digests(&output);
    let table: Vec<&str> = text.lines().rev().take(2).collect();
    assert!(
        code == 3 && table[0].starts_with("pots/b/c  out") && table[1].starts_with("pots/a    out"),
        "{output}"
    );
    assert!(
        errors.contains("2 of 4 parts had other bytes in the second run"),
        "{errors}"
    );
    assert!(errors.contains("run again for comparison"), "{errors}");
    let copy = |which: &str| project.read(&format!("out/shop/differs/pots/b/c/{which}/out"));
    assert_eq!(copy("first"), project.read("out/shop/pots/b/c/out"));
    assert!(copy("again").starts_with("pot b/c\nwet") && copy("again") != copy("first"));

    // Dependents are checked with the same inputs; stages that were not requested are not checked.
    let output = project.stdout("build shop.toml ware --check");
    assert!(
        output.ends_with("checked: 1 part ran twice with the same bytes\n"),
        "{output}"
    );
    assert!(
        project
            .stdout("build shop.toml --cache cache clay --check")
            .contains("checked: 1 part ran twice")
    );
    let (code, output, _) = project.kiln("build shop.toml --check --json", &[]);
    let line: Value = serde_json::from_str(output.lines().rev().nth(1).unwrap()).unwrap();
    assert_eq!(
        (
            code,
            &line["checked"],
            line["differs"].as_array().unwrap().len()
        ),
        (3, &4.into(), 2)
    );
}
