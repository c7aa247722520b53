//! Why an action is another one than last time: two canonical texts, compared field by field.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Task;
use crate::action::ActionKey;
use crate::events::Why;
use crate::store::{ActionResult, Found};

/// Why a part must run, after the cache said `found`; never empty. It had the key `last`, whose
/// result is `before`.
pub fn reasons(
    task: &Task,
    found: &Found,
    last: Option<ActionKey>,
    before: Option<&ActionResult>,
) -> Vec<Why> {
    if task.is_volatile && last == Some(task.key) {
        return vec![Why::Volatile];
    }
    if let Found::Gone(blob) = found {
        return vec![Why::OutputGone {
            blob: blob.to_string(),
        }];
    }
    let Some(key) = last else {
        return vec![Why::FirstTime];
    };
    if key == task.key {
        return vec![Why::OutputGone {
            blob: format!("the result of {key}"),
        }];
    }
    let old = before.and_then(|result| serde_json::from_str(&result.action).ok());
    let new = serde_json::from_str(&task.action.canonical_text()).ok();
    let (Some(old), Some(new)) = (old, new) else {
        return vec![Why::FirstTime];
    };
    differences(&old, &new)
}

/// All that differs between two actions, given as the JSON of their canonical texts.
pub fn differences(old: &Value, new: &Value) -> Vec<Why> {
    if old["stage"] != new["stage"] {
        return vec![Why::Kind {
            old: text(&old["stage"]),
            new: text(&new["stage"]),
        }];
    }
    let mut why = vec![];
    if old["version"] != new["version"] {
        let version = |action: &Value| {
            action["version"]
                .as_u64()
                .and_then(|version| version.try_into().ok())
        };
        why.push(Why::StageVersion {
            old: version(old).unwrap_or_default(),
            new: version(new).unwrap_or_default(),
        });
    }
    compare("", &old["params"], &new["params"], &mut |path, old, new| {
        why.push(Why::Param {
            path,
            old: old.clone(),
            new: new.clone(),
        });
    });
    let given = |value: &Value| (!value.is_null()).then(|| text(value));
    each_key(&old["inputs"], &new["inputs"], |name, old, new| {
        if old["digest"] != new["digest"] {
            why.push(Why::Input {
                name: name.into(),
                old: given(&old["digest"]),
                new: given(&new["digest"]),
            });
        }
        if !old.is_null() && !new.is_null() {
            compare("", &old["facts"], &new["facts"], &mut |path, old, new| {
                why.push(Why::Input {
                    name: format!("{name}: {path}"),
                    old: given(old),
                    new: given(new),
                });
            });
        }
    });
    each_key(&old["tools"], &new["tools"], |tool, old, new| {
        each_key(old, new, |file, old, new| {
            if old != new {
                why.push(Why::Tool {
                    name: format!("{tool}/{file}"),
                    old: given(old),
                    new: given(new),
                });
            }
        });
    });
    why
}

/// Calls `differs` with the path of each leaf that is not the same; `null` where there is none.
fn compare<'a>(
    path: &str,
    old: &'a Value,
    new: &'a Value,
    differs: &mut impl FnMut(String, &'a Value, &'a Value),
) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_string()
        } else {
            format!("{path}/{key}")
        }
    };
    match (old, new) {
        _ if old == new => {}
        (Value::Object(_), Value::Object(_)) => {
            each_key(old, new, |key, old, new| {
                compare(&below(key), old, new, differs)
            });
        }
        (Value::Array(a), Value::Array(b)) => {
            for index in 0..a.len().max(b.len()) {
                let at = |list: &'a [Value]| list.get(index).unwrap_or(&Value::Null);
                compare(&below(&index.to_string()), at(a), at(b), differs);
            }
        }
        _ => differs(path.to_string(), old, new),
    }
}

/// Goes through the keys of both objects in order.
fn each_key<'a>(old: &'a Value, new: &'a Value, mut visit: impl FnMut(&str, &'a Value, &'a Value)) {
    let keys = |value: &'a Value| value.as_object().into_iter().flat_map(|map| map.keys());
    let all: BTreeSet<&String> = keys(old).chain(keys(new)).collect();
    for key in all {
        visit(key, &old[key], &new[key]);
    }
}

/// A string as it is, anything else as JSON.
fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), String::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(old: Value, new: Value, expect: &[&str]) {
        let mut details = [old, new].map(|change| {
            let mut action = json!({
                "stage": "requant", "version": 1, "params": {"scheme": "native", "limits": [1, 2]},
                "inputs": {"tensor": {"digest": "b3:00/1", "facts": {"type": "Q4_0"}}}, "tools": {"qnn": {"a.so": "b3:01/2"}},
            });
            action.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
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
            json!({"inputs": {"tensor": {"digest": "b3:00/1", "facts": {"type": "Q8_0"}}, "b": {"digest": "b3:02/3"}}}),
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
