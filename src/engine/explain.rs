//! Explains why an action differs from the one of the last build: compares their canonical texts
//! field by field.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Task;
use crate::action::ActionKey;
use crate::events::Why;
use crate::store::{ActionResult, Lookup};

/// Why a part must run, if its lookup in the cache had the outcome `lookup`; never empty. In the
/// last build the part had the key `last_key` and the result `last_result`.
pub fn reasons(
    task: &Task,
    lookup: &Lookup,
    last_key: Option<ActionKey>,
    last_result: Option<&ActionResult>,
) -> Vec<Why> {
    if task.is_volatile && last_key == Some(task.key) {
        return vec![Why::Volatile];
    }
    if let Lookup::MissingBlob(blob) = lookup {
        return vec![Why::OutputGone {
            blob: blob.to_string(),
        }];
    }
    let Some(key) = last_key else {
        return vec![Why::FirstTime];
    };
    if key == task.key {
        return vec![Why::OutputGone {
            blob: format!("the result of {key}"),
        }];
    }
    if let Some(result) = last_result
        && let Ok(old) = serde_json::from_str(&result.action)
        && let Ok(new) = serde_json::from_str(&task.action.canonical_text())
    {
        return differences(&old, &new);
    }
    vec![Why::FirstTime]
}

/// All differences between two actions, as the JSON of their canonical texts.
pub fn differences(old: &Value, new: &Value) -> Vec<Why> {
    if old["stage"] != new["stage"] {
        return vec![Why::Kind {
            old: text(&old["stage"]),
            new: text(&new["stage"]),
        }];
    }
    let mut why = vec![];
    if old["version"] != new["version"] {
        why.push(Why::StageVersion {
            old: stage_version(old),
            new: stage_version(new),
        });
    }
    for Difference { path, old, new } in compare(&old["params"], &new["params"]) {
        why.push(Why::Param {
            path,
            old: old.clone(),
            new: new.clone(),
        });
    }
    for name in keys(&old["inputs"], &new["inputs"]) {
        let (old, new) = (&old["inputs"][name], &new["inputs"][name]);
        if old["digest"] != new["digest"] {
            why.push(Why::Input {
                name: name.into(),
                old: optional_text(&old["digest"]),
                new: optional_text(&new["digest"]),
            });
        }
        if old.is_null() || new.is_null() {
            continue;
        }
        for Difference { path, old, new } in compare(&old["facts"], &new["facts"]) {
            why.push(Why::Input {
                name: format!("{name}: {path}"),
                old: optional_text(old),
                new: optional_text(new),
            });
        }
    }
    for tool in keys(&old["tools"], &new["tools"]) {
        let (old, new) = (&old["tools"][tool], &new["tools"][tool]);
        for file in keys(old, new) {
            if old[file] != new[file] {
                why.push(Why::Tool {
                    name: format!("{tool}/{file}"),
                    old: optional_text(&old[file]),
                    new: optional_text(&new[file]),
                });
            }
        }
    }
    why
}

/// A leaf that differs between two JSON values; `null` in the value that does not have it.
struct Difference<'a> {
    path: String,
    old: &'a Value,
    new: &'a Value,
}

fn compare<'a>(old: &'a Value, new: &'a Value) -> Vec<Difference<'a>> {
    let mut differences = vec![];
    compare_at(String::new(), old, new, &mut differences);
    differences
}

/// Adds the differences between two values at `path`.
fn compare_at<'a>(
    path: String,
    old: &'a Value,
    new: &'a Value,
    differences: &mut Vec<Difference<'a>>,
) {
    let join = |key: &str| {
        if path.is_empty() {
            key.to_string()
        } else {
            format!("{path}/{key}")
        }
    };
    match (old, new) {
        _ if old == new => {}
        (Value::Object(_), Value::Object(_)) => {
            for key in keys(old, new) {
                compare_at(join(key), &old[key], &new[key], differences);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for index in 0..a.len().max(b.len()) {
                let old = a.get(index).unwrap_or(&Value::Null);
                let new = b.get(index).unwrap_or(&Value::Null);
                compare_at(join(&index.to_string()), old, new, differences);
            }
        }
        _ => differences.push(Difference { path, old, new }),
    }
}

/// The keys of both objects.
fn keys<'a>(old: &'a Value, new: &'a Value) -> BTreeSet<&'a str> {
    let mut keys = BTreeSet::new();
    for value in [old, new] {
        if let Value::Object(map) = value {
            keys.extend(map.keys().map(String::as_str));
        }
    }
    keys
}

fn stage_version(action: &Value) -> u32 {
    let version = action["version"].as_u64().unwrap_or_default();
    version.try_into().unwrap_or_default()
}

fn optional_text(value: &Value) -> Option<String> {
    if value.is_null() {
        return None;
    }
    Some(text(value))
}

/// A string without quotes, any other value as JSON.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(old: Value, new: Value, expect: &[&str]) {
        let mut details = [old, new].map(|change| {
            let mut action = json!({
                "stage": "requant",
                "version": 1,
                "params": {"scheme": "native", "limits": [1, 2]},
                "inputs": {"tensor": {"digest": "b3:00/1", "facts": {"type": "Q4_0"}}},
                "tools": {"qnn": {"a.so": "b3:01/2"}},
            });
            action
                .as_object_mut()
                .unwrap()
                .extend(change.as_object().unwrap().clone());
            action
        });
        let [old, new] = &mut details;
        let found: Vec<String> = differences(old, new).iter().map(Why::to_string).collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn each_field_is_compared() {
        check(json!({}), json!({}), &[]);
        check(
            json!({}),
            json!({"stage": "dequant", "version": 9}),
            &["kind: requant -> dequant"],
        );
        check(json!({}), json!({"version": 2}), &["stage version: 1 -> 2"]);
        check(
            json!({}),
            json!({"params": {"scheme": "f16", "limits": [1], "new": {}}}),
            &[
                "limits/1: 2 -> null",
                "new: null -> {}",
                "scheme: \"native\" -> \"f16\"",
            ],
        );
        check(
            json!({}),
            json!({"inputs": {
                "tensor": {"digest": "b3:00/1", "facts": {"type": "Q8_0"}},
                "b": {"digest": "b3:02/3"},
            }}),
            &[
                "input b: nothing -> b3:02/3",
                "input tensor: type: Q4_0 -> Q8_0",
            ],
        );
        check(
            json!({}),
            json!({"inputs": {}}),
            &["input tensor: b3:00/1 -> nothing"],
        );
        check(
            json!({}),
            json!({"tools": {"qnn": {"a.so": "b3:03/4"}, "ort": {"b.so": "b3:05/6"}}}),
            &[
                "tool ort/b.so: nothing -> b3:05/6",
                "tool qnn/a.so: b3:01/2 -> b3:03/4",
            ],
        );
    }
}
