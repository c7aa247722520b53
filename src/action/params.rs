//! Checks parameters against the JSON Schema of their stage kind: unknown and missing keys, types,
//! ranges and choices. It finds all problems at once; serde stops at the first.
//!
//! It handles the keywords that schemars writes for the parameters of stages, with all subschemas
//! inline. [`TypedStage::check`](super::TypedStage::check) checks patterns, with better messages.

use serde_json::{Map, Value};

use super::ParamProblem;
use crate::base::{Code, Problem, closest, hint, near};

/// Everything in `params` that `schema` does not allow, in the order of the keys.
pub(super) fn validate(schema: &Value, params: &Value) -> Vec<ParamProblem> {
    let mut validator = Validator::default();
    validator.value(schema, params);
    validator.problems
}

/// Traverses a value and its schema together.
#[derive(Default)]
struct Validator {
    /// Keys and indices from the table of the stage to the current value.
    path: Vec<String>,
    problems: Vec<ParamProblem>,
}

impl Validator {
    fn value(&mut self, schema: &Value, value: &Value) {
        if let Some(choices) = words(schema) {
            return self.one_of_words(schema, &choices, value);
        }
        if let Some(forms) = alternatives(schema) {
            return self.one_of_forms(schema, &forms, value);
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

    /// A value that is one of `choices`.
    fn one_of_words(&mut self, schema: &Value, choices: &[&str], value: &Value) {
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

    /// A value that has one of several forms. Reports the problems in the form that accepts its
    /// type.
    fn one_of_forms(&mut self, schema: &Value, forms: &[&Value], value: &Value) {
        let mut reported = None;
        for form in forms {
            let mut validator = Validator {
                path: self.path.clone(),
                problems: vec![],
            };
            validator.value(form, value);
            if validator.problems.is_empty() {
                return;
            }
            if reported.is_none() && accepts_type(form, value) {
                reported = Some(validator.problems);
            }
        }
        match reported {
            Some(problems) => self.problems.extend(problems),
            None => self.wrong_type(schema, value),
        }
    }

    fn table(&mut self, schema: &Value, table: &Map<String, Value>) {
        let none = Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&none);
        // Keys that are present with a typing error are not reported as missing.
        let mut misspelled = vec![];
        for (key, value) in table {
            let property = properties
                .get(key)
                .unwrap_or(&schema["additionalProperties"]);
            self.path.push(key.clone());
            if *property == Value::Bool(false) {
                let keys: Vec<&str> = properties.keys().map(String::as_str).collect();
                misspelled.extend(closest(key, keys.iter().copied()));
                let problem = Problem::new(Code::PlanUnknownParameter, "there is no such key");
                self.push(problem.help(hint(key, "its keys", keys)));
            } else {
                self.value(property, value);
            }
            self.path.pop();
        }
        let required = schema["required"].as_array().into_iter().flatten();
        for key in required.filter_map(Value::as_str) {
            if table.contains_key(key) || misspelled.contains(&key) {
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
            let found = match items.len() {
                0 => "an empty list".into(),
                count => format!("{count} items"),
            };
            let message = format!("expected {}, found {found}", expected(schema));
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
        let message = format!("expected {}, found {}", expected(schema), describe(value));
        self.push(described(
            Problem::new(Code::PlanWrongType, message),
            schema,
        ));
    }

    fn push(&mut self, problem: Problem) {
        self.problems.push(ParamProblem {
            path: self.path.join("/"),
            problem,
        });
    }
}

/// Adds the description in `schema` as help, on one line.
fn described(problem: Problem, schema: &Value) -> Problem {
    let Some(description) = schema["description"].as_str() else {
        return problem;
    };
    let words: Vec<&str> = description.split_whitespace().collect();
    problem.help(words.join(" "))
}

/// The words that `schema` allows, if it allows only words.
fn words(schema: &Value) -> Option<Vec<&str>> {
    if let Some(word) = schema.get("const") {
        return Some(vec![word.as_str()?]);
    }
    let mut all = vec![];
    if let Some(list) = schema.get("enum") {
        for word in list.as_array()? {
            all.push(word.as_str()?);
        }
    } else {
        for form in alternatives(schema)? {
            all.extend(words(form)?);
        }
    }
    Some(all)
}

/// The forms that a value may have, without null, which TOML does not have.
fn alternatives(schema: &Value) -> Option<Vec<&Value>> {
    let all = schema.get("anyOf").or(schema.get("oneOf"))?;
    let mut forms = vec![];
    for form in all.as_array()? {
        if form["type"] != "null" {
            forms.push(form);
        }
    }
    Some(forms)
}

/// The types that `schema` allows. Empty if it allows all.
fn types(schema: &Value) -> Vec<&str> {
    let several = match &schema["type"] {
        Value::String(name) => return vec![name],
        Value::Array(names) => names.as_slice(),
        _ => &[],
    };
    let mut types: Vec<&str> = several.iter().filter_map(Value::as_str).collect();
    types.retain(|name| *name != "null");
    types
}

fn is_of_type(schema: &Value, value: &Value) -> bool {
    let allowed = types(schema);
    for name in &allowed {
        let is_of_this_type = match *name {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            _ => false,
        };
        if is_of_this_type {
            return true;
        }
    }
    allowed.is_empty()
}

/// Whether `schema` allows values of the type of `value`.
fn accepts_type(schema: &Value, value: &Value) -> bool {
    if words(schema).is_some() {
        return value.is_string();
    }
    match alternatives(schema) {
        Some(forms) => forms.iter().any(|form| accepts_type(form, value)),
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
        // schemars does not write the bounds of integer types.
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
    let range = Range::of(schema);
    let is_below_range = match (range.least, range.above) {
        (Some(least), _) if number < least => true,
        (_, Some(above)) if number <= above => true,
        _ => false,
    };
    let is_above_range = match (range.most, range.below) {
        (Some(most), _) if number > most => true,
        (_, Some(below)) if number >= below => true,
        _ => false,
    };
    !is_below_range && !is_above_range
}

/// The values that the schema allows, in words.
fn expected(schema: &Value) -> String {
    if let Some(choices) = words(schema) {
        return either(&choices);
    }
    let mut texts = vec![];
    // Forms of one type are for editors.
    if types(schema).is_empty()
        && let Some(forms) = alternatives(schema)
    {
        for form in forms {
            texts.push(expected(form));
        }
        return texts.join(", or ");
    }
    for name in types(schema) {
        texts.push(match name {
            "object" => table(schema),
            "array" => list(schema),
            "string" => "a string".into(),
            "boolean" => "true or false".into(),
            "integer" => format!("an integer{}", range(schema)),
            "number" => format!("a number{}", range(schema)),
            other => other.to_string(),
        });
    }
    if texts.is_empty() {
        return "a value".into();
    }
    texts.join(", or ")
}

/// A table, in words.
fn table(schema: &Value) -> String {
    match schema["properties"].as_object() {
        Some(properties) if (1..=6).contains(&properties.len()) => {
            let keys: Vec<&str> = properties.keys().map(String::as_str).collect();
            format!("a table with {}", either(&keys))
        }
        _ => "a table".into(),
    }
}

/// A list, in words.
fn list(schema: &Value) -> String {
    let items = &schema["items"];
    let of = match (words(items), types(items).as_slice()) {
        (Some(words), _) => either(&words),
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
    match words {
        [] => "nothing".into(),
        [only] => format!("`{only}`"),
        [most @ .., last] => format!("`{}` or `{last}`", most.join("`, `")),
    }
}

/// A value in words. Short ones are quoted.
fn describe(value: &Value) -> String {
    match value {
        Value::String(text) if text.len() <= 40 => format!("the string {value}"),
        Value::String(_) => "a string".into(),
        Value::Bool(value) => format!("{value}"),
        Value::Number(number) => format!("{number}"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a table".into(),
        Value::Null => "nothing".into(),
    }
}
