//! `docs/events.md` and the code say the same.

use std::collections::BTreeSet;

use kiln::events::{LogReader, LoggedEvent, Why};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const DOC: &str = include_str!("../../docs/events.md");

/// Every documented example that has `tag` as its first field, and the names that the examples
/// have.
fn examples(tag: &str) -> (Vec<&'static str>, BTreeSet<String>) {
    let opening = format!("{{\"{tag}\":");
    let lines: Vec<&str> = DOC
        .lines()
        .filter(|line| line.starts_with(&opening))
        .collect();
    let name = |line: &&str| {
        serde_json::from_str::<Value>(line).unwrap()[tag]
            .as_str()
            .unwrap()
            .to_string()
    };
    let names = lines.iter().map(name).collect();
    (lines, names)
}

/// The examples parse as `T`, have all of its fields and no others; every variant has an example
/// and a row.
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
        for field in fields
            .as_object()
            .unwrap()
            .keys()
            .filter(|field| ![tag, "at_ms"].contains(&field.as_str()))
        {
            assert!(row.contains(&format!("`{field}`")), "no {field} in: {row}");
        }
    }
    // What serde would have accepted in place of a name that is none: ..., expected one of `a`,
    // `b`.
    let Err(refused) = serde_json::from_str::<T>(&format!("{{\"{tag}\":\"?\",\"at_ms\":0}}"))
    else {
        panic!("`?` is one")
    };
    let refused = refused.to_string();
    let all = refused
        .split("one of ")
        .nth(1)
        .unwrap()
        .split('`')
        .skip(1)
        .step_by(2);
    assert_eq!(documented, all.map(String::from).collect());
}

#[test]
fn events_are_documented() {
    check::<LoggedEvent>("event");
    let log = examples("event").0.join("\n");
    LogReader::new(log.as_bytes()).for_each(|logged| drop(logged.unwrap()));
}

#[test]
fn reasons_are_documented() {
    check::<Why>("why");
}
