//! Checks parameters against the JSON Schema of their stage kind: unknown and missing keys, types,
//! ranges and choices. It finds all mistakes at once; serde would stop at the first.
//!
//! It knows the keywords that schemars writes for the parameters of stages, with all subschemas
//! inline. `pattern` is left to [`TypedStage::check`](super::TypedStage::check), which has better
//! messages.

use serde_json::{Map, Value};

use super::ParamProblem;
use crate::base::{Code, Problem, closest, hint, near};

/// Everything in `params` that `schema` does not allow, in the order of the keys.
pub fn mistakes(schema: &Value, params: &Value) -> Vec<ParamProblem> {
    let mut walk = Walk {
        path: vec![],
        found: vec![],
    };
    walk.value(schema, params);
    walk.found
}

/// Goes through a value and its schema side by side.
struct Walk {
    /// Keys and indices from the stage's table to the current value.
    path: Vec<String>,
    found: Vec<ParamProblem>,
}

impl Walk {
    fn value(&mut self, schema: &Value, value: &Value) {
        if let Some(choices) = choices(schema) {
            return self.choice(schema, &choices, value);
        }
        if let Some(alternatives) = alternatives(schema) {
            return self.one_of(schema, &alternatives, value);
        }
        if !is_of_type(schema, value) {
            return self.wrong_type(schema, value);
        }
        match value {
            Value::Object(table) => self.table(schema, table),
            Value::Array(items) => self.list(schema, items),
            Value::Number(_) if !is_in_range(schema, value) => {
                let message = format!("expected {}, found {value}", expected(schema));
                self.push(described(
                    Problem::new(Code::PlanParameter, message),
                    schema,
                ));
            }
            _ => {}
        }
    }

    /// A value that is one of some words.
    fn choice(&mut self, schema: &Value, choices: &[&str], value: &Value) {
        let Some(word) = value.as_str() else {
            return self.wrong_type(schema, value);
        };
        if choices.contains(&word) {
            return;
        }
        let message = format!("expected {}, found `{word}`", either(choices));
        let problem = Problem::new(Code::PlanParameter, message);
        self.push(match near(word, choices.iter().copied()) {
            Some(choice) => problem.help(format!("did you mean `{choice}`?")),
            None => described(problem, schema),
        });
    }

    /// A value that may have one of several forms. Reports the mistakes in the form whose type it
    /// has.
    fn one_of(&mut self, schema: &Value, alternatives: &[&Value], value: &Value) {
        let mut meant = None;
        for alternative in alternatives {
            let mut walk = Walk {
                path: self.path.clone(),
                found: vec![],
            };
            walk.value(alternative, value);
            if walk.found.is_empty() {
                return;
            }
            if meant.is_none() && accepts_type(alternative, value) {
                meant = Some(walk.found);
            }
        }
        match meant {
            Some(found) => self.found.extend(found),
            None => self.wrong_type(schema, value),
        }
    }

    fn table(&mut self, schema: &Value, table: &Map<String, Value>) {
        let none = Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&none);
        // Keys that are there with a typing error are not missing.
        let mut meant = vec![];
        for (key, value) in table {
            let property = properties
                .get(key)
                .unwrap_or(&schema["additionalProperties"]);
            self.path.push(key.clone());
            if *property == Value::Bool(false) {
                let known: Vec<&str> = properties.keys().map(String::as_str).collect();
                meant.extend(closest(key, known.iter().copied()));
                let problem = Problem::new(Code::PlanUnknownParameter, "there is no such key");
                self.push(problem.help(hint(key, "its keys", known)));
            } else {
                self.value(property, value);
            }
            self.path.pop();
        }
        let required = schema["required"].as_array().into_iter().flatten();
        for key in required.filter_map(Value::as_str) {
            if table.contains_key(key) || meant.contains(&key) {
                continue;
            }
            let property = properties.get(key).unwrap_or(&Value::Null);
            let message = format!("missing, expected {}", expected(property));
            self.path.push(key.into());
            self.push(described(
                Problem::new(Code::PlanMissingParameter, message),
                property,
            ));
            self.path.pop();
        }
    }

    fn list(&mut self, schema: &Value, items: &[Value]) {
        let least = schema["minItems"].as_u64().unwrap_or(0);
        if (items.len() as u64) < least {
            let items = match items.len() {
                0 => "an empty list".into(),
                found => format!("{found} items"),
            };
            let message = format!("expected {}, found {items}", expected(schema));
            self.push(described(
                Problem::new(Code::PlanParameter, message),
                schema,
            ));
        }
        for (index, item) in items.iter().enumerate() {
            self.path.push(index.to_string());
            if schema["uniqueItems"] == true && items[..index].contains(item) {
                let message = format!("{item} is in the list twice");
                self.push(Problem::new(Code::PlanParameter, message));
            } else if let Some(schema) = schema.get("items") {
                self.value(schema, item);
            }
            self.path.pop();
        }
    }

    fn wrong_type(&mut self, schema: &Value, value: &Value) {
        let message = format!("expected {}, found {}", expected(schema), what(value));
        self.push(described(
            Problem::new(Code::PlanWrongType, message),
            schema,
        ));
    }

    fn push(&mut self, problem: Problem) {
        self.found.push(ParamProblem {
            path: self.path.join("/"),
            problem,
        });
    }
}

/// Adds the description of the value as help.
fn described(problem: Problem, schema: &Value) -> Problem {
    match schema["description"].as_str() {
        Some(description) => {
            problem.help(description.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        None => problem,
    }
}

/// The words that `schema` allows, if it allows nothing else.
fn choices(schema: &Value) -> Option<Vec<&str>> {
    if let Some(word) = schema.get("const") {
        return Some(vec![word.as_str()?]);
    }
    if let Some(words) = schema.get("enum") {
        return words.as_array()?.iter().map(Value::as_str).collect();
    }
    let alternatives = alternatives(schema)?;
    let words: Option<Vec<Vec<&str>>> = alternatives.into_iter().map(choices).collect();
    Some(words?.concat())
}

/// The forms that a value may have. TOML has no null.
fn alternatives(schema: &Value) -> Option<Vec<&Value>> {
    let all = schema.get("anyOf").or_else(|| schema.get("oneOf"))?;
    let is_some = |form: &&Value| form["type"] != "null";
    Some(all.as_array()?.iter().filter(is_some).collect())
}

/// The types that `schema` allows; none where it allows all.
fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several
            .iter()
            .filter_map(Value::as_str)
            .filter(|name| *name != "null")
            .collect(),
        _ => vec![],
    }
}

fn is_of_type(schema: &Value, value: &Value) -> bool {
    let types = types(schema);
    let is = |name: &&str| match *name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => false,
    };
    types.is_empty() || types.iter().any(is)
}

/// Whether a value of this type may be right in `schema`.
fn accepts_type(schema: &Value, value: &Value) -> bool {
    if choices(schema).is_some() {
        return value.is_string();
    }
    match alternatives(schema) {
        Some(alternatives) => alternatives.iter().any(|form| accepts_type(form, value)),
        None => is_of_type(schema, value),
    }
}

/// The bounds of a number.
struct Range {
    least: Option<f64>,
    above: Option<f64>,
    most: Option<f64>,
    below: Option<f64>,
}

impl Range {
    fn of(schema: &Value) -> Self {
        let bound = |keyword: &str| schema[keyword].as_f64();
        // schemars leaves out the bounds of the type itself.
        let (first, last) = match schema["format"].as_str() {
            Some("uint32") => (Some(0.0), Some(f64::from(u32::MAX))),
            Some("int32") => (Some(f64::from(i32::MIN)), Some(f64::from(i32::MAX))),
            Some("uint" | "uint64") => (Some(0.0), None),
            _ => (None, None),
        };
        Range {
            least: bound("minimum").or(first),
            above: bound("exclusiveMinimum"),
            most: bound("maximum").or(last),
            below: bound("exclusiveMaximum"),
        }
    }
}

fn is_in_range(schema: &Value, value: &Value) -> bool {
    let Some(number) = value.as_f64() else {
        return true;
    };
    let Range {
        least,
        above,
        most,
        below,
    } = Range::of(schema);
    least.is_none_or(|least| number >= least)
        && above.is_none_or(|above| number > above)
        && most.is_none_or(|most| number <= most)
        && below.is_none_or(|below| number < below)
}

/// What the schema allows, in words.
fn expected(schema: &Value) -> String {
    if let Some(choices) = choices(schema) {
        return either(&choices);
    }
    if let Some(alternatives) = alternatives(schema) {
        let forms: Vec<String> = alternatives.into_iter().map(expected).collect();
        return forms.join(", or ");
    }
    let types = types(schema);
    let words = types.iter().map(|name| match *name {
        "object" => match schema["properties"].as_object() {
            Some(properties) if (1..=6).contains(&properties.len()) => {
                let keys: Vec<&str> = properties.keys().map(String::as_str).collect();
                format!("a table with {}", either(&keys))
            }
            _ => "a table".into(),
        },
        "array" => list(schema),
        "string" => "a string".into(),
        "boolean" => "true or false".into(),
        "integer" => format!("an integer{}", range(schema)),
        "number" => format!("a number{}", range(schema)),
        other => other.to_string(),
    });
    match words.collect::<Vec<String>>() {
        words if words.is_empty() => "a value".into(),
        words => words.join(", or "),
    }
}

/// A list, in words.
fn list(schema: &Value) -> String {
    let items = &schema["items"];
    let of = match (choices(items), types(items).as_slice()) {
        (Some(choices), _) => either(&choices),
        (None, ["string"]) => "strings".into(),
        (None, ["integer"]) => "integers".into(),
        (None, ["number"]) => "numbers".into(),
        (None, ["object"]) => "tables".into(),
        _ => String::new(),
    };
    match (schema["minItems"].as_u64(), of.as_str()) {
        (None | Some(0), "") => "a list".into(),
        (None | Some(0), of) => format!("a list of {of}"),
        (Some(1), "") => "a non-empty list".into(),
        (Some(1), of) => format!("a non-empty list of {of}"),
        (Some(least), of) => format!("a list of at least {least} {of}"),
    }
}

/// ` from 1 to 3`, or nothing.
fn range(schema: &Value) -> String {
    let Range {
        least,
        above,
        most,
        below,
    } = Range::of(schema);
    let low = match (least, above) {
        (_, Some(above)) => Some(format!("above {above}")),
        (Some(least), _) => Some(format!("{least}")),
        _ => None,
    };
    let high = match (most, below) {
        (_, Some(below)) => Some(format!("below {below}")),
        (Some(most), _) if most < f64::from(u32::MAX) => Some(format!("{most}")),
        _ => None,
    };
    match (low, high) {
        (Some(low), Some(high)) if above.is_none() && below.is_none() => {
            format!(" from {low} to {high}")
        }
        (Some(low), Some(high)) if above.is_some() && below.is_none() => {
            format!(" {low} and at most {high}")
        }
        (Some(low), Some(high)) => format!(" {low} and {high}"),
        (Some(low), None) if above.is_some() => format!(" {low}"),
        (Some(low), None) => format!(" of at least {low}"),
        (None, Some(high)) if below.is_some() => format!(" {high}"),
        (None, Some(high)) => format!(" of at most {high}"),
        (None, None) => String::new(),
    }
}

/// `a`, `b` or `c`, each in backquotes.
fn either(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".into(),
        [only] => only.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// What a value is, in words; short ones as they are written.
fn what(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() <= 40 => format!("the string {value}"),
        Value::String(_) => "a string".into(),
        Value::Bool(truth) => format!("{truth}"),
        Value::Number(number) => format!("{number}"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a table".into(),
        Value::Null => "nothing".into(),
    }
}
