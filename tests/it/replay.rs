//! The views of a real build, by the program: what is recorded, made into reports, and shown again.

use std::fs;
use std::path::Path;

use crate::support::event_fixtures::{build_events, emit, interrupted_build_events};
use crate::support::fetching::sha256;
use assert_cmd::Command;
use kiln::events::{Event, JsonLines};
use serde_json::Value;

fn kiln(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("kiln").unwrap();
    let output = command
        .env_remove("GITHUB_ACTIONS")
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A plan of one file that is there; the second stage fails, because the file is no GGUF.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("clay"), "clay").unwrap();
    let pin = sha256(b"clay");
    let plan = format!(
        "[plan]\nname = 'small'\n[stage.source]\nkind = 'fetch'\nurl = 'file:clay'\nsha256 = \
         '{pin}'\n[stage.model]\nkind = 'inspect'\ngguf = 'source'\n"
    );
    fs::write(folder.path().join("plan.toml"), plan).unwrap();
    folder
}

#[test]
fn a_failed_build_writes_log_and_reports() {
    let folder = folder();
    let at = folder.path();
    let reports = ["--junit", "new/junit.xml", "--trace", "new/trace.json"];
    let (code, out, err) = kiln(
        at,
        &[&["build", "plan.toml", "--log", "new/log"], &reports[..]].concat(),
    );
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    let made =
        ["new/junit.xml", "new/trace.json"].map(|name| fs::read_to_string(at.join(name)).unwrap());
    assert!(
        made[0].contains("failures=\"1\"") && made[0].contains("<failure message="),
        "{}",
        made[0]
    );
    let trace: Value = serde_json::from_str(&made[1]).unwrap();
    let parts = trace["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["ph"] == "X");
    assert_eq!(parts.count(), 2);
    assert_eq!(
        fs::read_dir(at.join("new")).unwrap().count(),
        3,
        "nothing else is left"
    );

    // What is shown again is what was shown, and the reports of the log are those of the build.
    let (code, out, again) = kiln(
        at,
        &[
            "replay",
            "new/log",
            "--junit",
            "again.xml",
            "--trace",
            "again.json",
        ],
    );
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[..lines.len() - 1],
        err.lines().take(lines.len() - 1).collect::<Vec<_>>()
    );
    assert!(
        lines
            .last()
            .unwrap()
            .starts_with("small: 1 part ran, 0 from the cache, 1 failed, in "),
        "{out}"
    );
    // Of the plan, a log has no text.
    let is_shown = again.lines().all(|line| err.contains(line));
    assert!(
        is_shown && again.contains("kiln::model::gguf_magic") && again.contains("stage `model`: "),
        "{again}"
    );
    assert!(err.contains("[plan.toml:7:8]"), "{err}");
    assert_eq!(
        ["again.xml", "again.json"].map(|name| fs::read_to_string(at.join(name)).unwrap()),
        made
    );

    // The log is what --json prints, and is shown again as such; what --json says at the end is no
    // event.
    let log = fs::read_to_string(at.join("new/log")).unwrap();
    assert_eq!(
        kiln(at, &["replay", "new/log", "--json", "--speed", "1000"]),
        (0, log, String::new())
    );
    let (_, json, _) = kiln(at, &["build", "plan.toml", "--json"]);
    fs::write(at.join("json"), &json).unwrap();
    assert!(
        json.lines().last().unwrap().contains("\"problem\":{"),
        "{json}"
    );
    assert_eq!(kiln(at, &["replay", "json"]).0, 0);
}

#[test]
fn unwritable_outputs_are_reported_before_the_build() {
    let folder = folder();
    for option in ["--log", "--junit", "--trace"] {
        let (code, _, err) = kiln(folder.path(), &["build", "plan.toml", option, "clay/file"]);
        assert!(
            code == 2 && err.contains("clay/file") && !err.contains("begin"),
            "{err}"
        );
    }
    assert_eq!(
        kiln(folder.path(), &["build", "plan.toml", "--junit", "."]).0,
        2
    );
}

fn log(events: &[(u64, Event)]) -> String {
    let mut text = vec![];
    emit(&mut JsonLines::new(&mut text), events);
    String::from_utf8(text).unwrap()
}

/// Replays a log; yields the exit code, the last line of what was shown, and what was wrong.
fn replay(text: &str) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("log"), text).unwrap();
    let (code, out, err) = kiln(folder.path(), &["replay", "log", "--junit", "junit.xml"]);
    assert!(folder.path().join("junit.xml").exists());
    (code, out.lines().last().unwrap_or_default().into(), err)
}

#[test]
fn an_incomplete_log_is_reported() {
    let (code, out, err) = replay(&log(&interrupted_build_events()));
    assert_eq!(
        (code, out.as_str()),
        (2, "p: 0 parts ran, 5 from the cache, in 60 ms")
    );
    assert!(
        err.contains("kiln::log::cut") && err.contains("ends after 10 lines, before the build did"),
        "{err}"
    );
    let text = log(&interrupted_build_events());
    let (code, out, err) = replay(&text[..text.len() - 9]);
    assert_eq!(
        (code, out.as_str()),
        (2, "p: 0 parts ran, 5 from the cache, in 50 ms")
    );
    assert!(
        err.contains("line 10 of the log is not an event") && err.contains("cut in the middle"),
        "{err}"
    );
    assert!(replay("").2.contains("ends after 0 lines"));
}

#[test]
fn an_invalid_log_is_rejected_with_its_line() {
    let check = |line: usize, new: &str, expect: &str| {
        let text = log(&build_events());
        let mut lines: Vec<&str> = text.lines().collect();
        lines[line - 1] = new;
        let (code, _, err) = replay(&(lines.join("\n") + "\n"));
        let err = err
            .split_whitespace()
            .filter(|word| *word != "│")
            .collect::<Vec<_>>()
            .join(" ");
        assert!(code == 2 && err.contains(expect), "{expect}:\n{err}");
    };
    check(3, "pot", "line 3 of the log is not an event");
    check(3, "", "line 3 of the log is not an event");
    check(
        3,
        "{\"event\":\"burst\",\"at_ms\":1}",
        "unknown variant `burst`",
    );
    check(
        3,
        "{\"event\":\"expanded\",\"stage\":\"source\",\"at_ms\":1}",
        "missing field `parts`",
    );
    check(
        3,
        "{\"event\":\"expanded\",\"stage\":\"source\",\"parts\":1}",
        "missing field `at_ms`",
    );
    check(
        3,
        "{\"event\":\"expanded\",\"stage\":\"source\",\"parts\":-1,\"at_ms\":1}",
        "-1",
    );
    check(
        3,
        "{\"event\":\"completed\",\"stage\":\"kettle\",\"at_ms\":1}",
        "a stage `kettle` that `begun` does not name",
    );
    check(
        4,
        "{\"event\":\"completed\",\"stage\":\"text\",\"at_ms\":1}",
        "goes back in time, from 2 ms to 1 ms",
    );
    check(
        4,
        log(&build_events()[..1]).trim(),
        "goes back in time, from 2 ms to 0 ms",
    );
    check(
        1,
        "{\"event\":\"completed\",\"stage\":\"text\",\"at_ms\":1}",
        "a log begins with `begun`",
    );
    check(
        1,
        "{\"event\":\"begun\",\"schema\":9,\"new\":[]}",
        "has schema 9; this kiln reads 2",
    );
    let (code, _, err) = replay(&"x".repeat((16 << 20) + 1));
    assert!(
        code == 2 && err.contains("longer than 16777216 bytes"),
        "{err}"
    );
    // Numbers that no build could reach.
    let huge = format!(
        "{{\"event\":\"unchanged\",\"stage\":\"text\",\"parts\":{0},\"at_ms\":1}}",
        u64::MAX
    );
    let text = log(&build_events()).replace("12010}", &format!("{}}}", u64::MAX));
    let lines: Vec<&str> = text
        .lines()
        .enumerate()
        .map(|(at, line)| if at == 1 { &huge } else { line })
        .collect();
    assert_eq!(replay(&lines.join("\n")).0, 0);
}

#[test]
fn problems_are_annotations_on_github() {
    let folder = folder();
    fs::write(
        folder.path().join("plan.toml"),
        "[plan]\nname = 'x'\n[stage.a]\nkind = 'fletch'\n",
    )
    .unwrap();
    let run = |value: &str| {
        let mut command = Command::cargo_bin("kiln").unwrap();
        command
            .env("GITHUB_ACTIONS", value)
            .current_dir(folder.path())
            .args(["check", "plan.toml"]);
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let annotation = "::error file=plan.toml,line=4,col=8,title=kiln%3A%3Aplan%3A%3Aunknown_kind::";
    assert!(
        run("true").lines().any(|line| line.starts_with(annotation)),
        "{}",
        run("true")
    );
    assert!(!run("false").contains("::error"));
}
