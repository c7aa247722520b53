//! `docs/events.md` matches the code.

use std::collections::BTreeSet;

use kiln::events::{LogReader, LoggedEvent, Why};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const DOC: &str = include_str!("../../docs/events.md");

/// The documented examples whose first field is `tag`, and the values of that field.
fn examples(tag: &str) -> (Vec<&'static str>, BTreeSet<String>) {
    let opening = format!("{{\"{tag}\":");
    let lines: Vec<&str> = DOC
        .lines()
        .filter(|line| line.starts_with(&opening))
        .collect();
    let mut names = BTreeSet::new();
    for line in &lines {
        let example: Value = serde_json::from_str(line).unwrap();
        names.insert(example[tag].as_str().unwrap().to_string());
    }
    (lines, names)
}

/// The examples parse as `T` with exactly its fields; every variant has an example and a row.
fn check<T: DeserializeOwned + Serialize>(tag: &str) {
    let (lines, documented) = examples(tag);
    for line in lines {
        let parsed: T =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(serde_json::to_string(&parsed).unwrap(), line);
        let fields: Value = serde_json::from_str(line).unwrap();
        let row = format!("| `{}` |", fields[tag].as_str().unwrap());
        let row = DOC
            .lines()
            .find(|line| line.starts_with(&row))
            .unwrap_or_else(|| panic!("no row {row}"));
        for field in fields.as_object().unwrap().keys() {
            let is_common = field == tag || field == "at_ms";
            assert!(
                is_common || row.contains(&format!("`{field}`")),
                "no {field} in: {row}"
            );
        }
    }
    // The error of serde for an unknown name lists the known ones: ..., expected one of `a`, `b`.
    let Err(error) = serde_json::from_str::<T>(&format!("{{\"{tag}\":\"?\",\"at_ms\":0}}")) else {
        panic!("`?` is one")
    };
    let error = error.to_string();
    let (_, list) = error.split_once("one of ").unwrap();
    let names = list.split('`').skip(1).step_by(2);
    assert_eq!(documented, names.map(String::from).collect());
}

#[test]
fn events_are_documented() {
    check::<LoggedEvent>("event");
    let log = examples("event").0.join("\n");
    for logged in LogReader::new(log.as_bytes()) {
        logged.unwrap();
    }
}

#[test]
fn reasons_are_documented() {
    check::<Why>("why");
}
