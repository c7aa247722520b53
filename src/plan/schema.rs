//! The JSON Schema of a plan, for editors: the same kinds, slots and parameters that `read` knows.

use serde_json::{Map, Value, json};

use super::common::{ACROSS, KEEP, KIND, MAX_RETRIES, OPTIONAL, RETRIES, TIMEOUT, TIMEOUT_PATTERN};
use super::words::NAME_PATTERN;
use crate::action::{InputSpec, Registry, Stage, StageSpec};

/// The JSON Schema (draft 2020-12) of a plan made of the stage kinds in `registry`. What it
/// refuses, `read` refuses too, but for a `kind` that is a variable; edges and variables only
/// `read` can check.
pub fn schema(registry: &Registry) -> Value {
    let kinds: Vec<Value> = registry
        .kinds()
        .filter_map(|kind| registry.get(kind))
        .map(stage)
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A kiln plan",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "include": {
                "description": "Files whose variables, axes, tools and stages this one takes over; paths start from its folder.",
                "type": "array",
                "items": { "type": "string" }
            },
            "plan": {
                "description": "What the plan is called; an included file has none.",
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "name": described(json!({ "type": "string", "pattern": NAME_PATTERN }), "Artifacts go to out/NAME/.")
                },
                "required": ["name"]
            },
            "vars": {
                "description": "Values that the plan uses as ${name}; --set NAME=VALUE replaces one.",
                "type": "object",
                "additionalProperties": { "$ref": "#/$defs/scalar" }
            },
            "matrix": {
                "description": "Axes: a stage that uses ${axis}, or takes from one that does, exists once per value.",
                "type": "object",
                "additionalProperties": { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/scalar" } }
            },
            "tools": {
                "description": "Wheels whose shared libraries stages load, pinned by sha256.",
                "type": "object",
                "propertyNames": { "pattern": NAME_PATTERN },
                "additionalProperties": { "$ref": "#/$defs/tool" }
            },
            "stage": {
                "description": "The stages; an input names the stage that gives it.",
                "type": "object",
                "propertyNames": { "pattern": NAME_PATTERN },
                "additionalProperties": { "$ref": "#/$defs/stage" }
            }
        },
        "$defs": {
            "scalar": { "type": ["string", "number", "boolean"] },
            "variable": { "type": "string", "pattern": r"\$\{[^}]*\}" },
            "tool": tool(),
            "stage": { "oneOf": kinds }
        }
    })
}

fn described(mut schema: Value, description: &str) -> Value {
    schema["description"] = description.into();
    schema
}

fn tool() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "pypi": { "description": "PACKAGE==VERSION", "type": "string" },
            "url": { "description": "The address of a wheel.", "type": "string" },
            "sha256": { "description": "64 hexadecimal digits, of the wheel.", "type": "string" },
            "timeout": timeout(),
            "retries": retries()
        },
        "oneOf": [{ "required": ["pypi"] }, { "required": ["url"] }]
    })
}

/// Everything that a stage of one kind may say.
fn stage(stage: &dyn Stage) -> Value {
    let spec = stage.spec();
    let params = Value::from(stage.schema());
    let mut properties = common(spec);
    let mut required = vec![Value::from(KIND)];
    for input in spec.inputs {
        properties.insert(input.name.into(), slot(input));
        required.extend(input.required.then(|| input.name.into()));
    }
    for (name, param) in params["properties"].as_object().into_iter().flatten() {
        properties.insert(name.clone(), variable_too(param));
    }
    required.extend(params["required"].as_array().into_iter().flatten().cloned());
    json!({
        "title": spec.kind,
        "description": spec.summary,
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "required": required
    })
}

fn common(spec: &StageSpec) -> Map<String, Value> {
    let mut keys = Map::new();
    keys.insert(
        KIND.into(),
        json!({ "description": spec.summary, "const": spec.kind }),
    );
    let keep = json!({ "anyOf": [
        { "type": "boolean" },
        { "type": "array", "items": { "type": "string" } },
        { "$ref": "#/$defs/variable" }
    ] });
    keys.insert(
        KEEP.into(),
        described(
            keep,
            "What of it is written out: all, nothing, or these parts and folders.",
        ),
    );
    let optional = json!({ "anyOf": [{ "type": "boolean" }, { "$ref": "#/$defs/variable" }] });
    keys.insert(
        OPTIONAL.into(),
        described(
            optional,
            "It is built only where it, or what needs it, is asked for.",
        ),
    );
    keys.insert(TIMEOUT.into(), timeout());
    if spec.reaches_outside {
        keys.insert(RETRIES.into(), retries());
    }
    if spec.inputs.iter().any(|slot| slot.many) {
        let across = json!({ "type": "array", "items": { "type": "string" } });
        keys.insert(
            ACROSS.into(),
            described(
                across,
                "Axes of [matrix] along which it takes all stages at once.",
            ),
        );
    }
    keys
}

fn timeout() -> Value {
    let time = json!({ "type": "string", "anyOf": [{ "pattern": TIMEOUT_PATTERN }, { "$ref": "#/$defs/variable" }] });
    described(
        time,
        "How long one of its actions may take: 90s, 20min, 2h.",
    )
}

fn retries() -> Value {
    let count = json!({ "type": "integer", "minimum": 0, "maximum": MAX_RETRIES, "default": 0 });
    variable_too(&described(
        count,
        "How often an action that failed is tried again.",
    ))
}

fn slot(input: &InputSpec) -> Value {
    let gives = input.accepts.join("` or `");
    let name = json!({ "type": "string" });
    match input.many {
        false => described(name, &format!("The stage that gives its `{gives}`.")),
        true => described(
            json!({ "anyOf": [{ "type": "array", "items": name.clone() }, name] }),
            &format!("The stages that give its `{gives}`."),
        ),
    }
}

/// `schema`, which also takes `${name}` wherever it takes a value that is no free text. TOML has no
/// null.
fn variable_too(schema: &Value) -> Value {
    let Some(fields) = schema.as_object() else {
        return schema.clone();
    };
    let mut fields: Map<String, Value> = fields
        .iter()
        .map(|(key, value)| (key.clone(), inner(key, value)))
        .collect();
    let is_null = |value: &Value| *value == "null" || value["type"] == "null";
    for key in ["type", "anyOf", "enum"] {
        if let Some(Value::Array(choices)) = fields.get_mut(key) {
            choices.retain(|choice| !is_null(choice));
            if let ("type", [only]) = (key, choices.as_slice()) {
                let only = only.clone();
                fields.insert(key.into(), only);
            }
        }
    }
    fields.retain(|key, value| !(key == "default" && value.is_null()));
    let scalar = fields
        .get("type")
        .is_some_and(|is| *is == "integer" || *is == "number" || *is == "boolean");
    if !scalar && !fields.contains_key("enum") && !fields.contains_key("oneOf") {
        return Value::Object(fields);
    }
    let outside: Map<String, Value> = ["description", "default"]
        .iter()
        .filter_map(|key| fields.remove_entry(*key))
        .collect();
    let mut either = json!({ "anyOf": [fields, { "$ref": "#/$defs/variable" }] });
    outside
        .into_iter()
        .for_each(|(key, value)| either[key] = value);
    either
}

/// The value of a schema's keyword: schemas inside it are treated like the whole.
fn inner(keyword: &str, value: &Value) -> Value {
    match (keyword, value) {
        ("items" | "additionalProperties", schema) => variable_too(schema),
        ("properties", Value::Object(fields)) => Value::Object(
            fields
                .iter()
                .map(|(key, schema)| (key.clone(), variable_too(schema)))
                .collect(),
        ),
        ("anyOf", Value::Array(schemas)) => schemas.iter().map(variable_too).collect(),
        _ => value.clone(),
    }
}
