//! The JSON Schema of a plan, for editors: the same kinds, inputs and parameters that `read` knows.

use serde_json::{Map, Value, json};

use super::common::{ACROSS, KEEP, KIND, MAX_RETRIES, OPTIONAL, RETRIES, TIMEOUT, TIMEOUT_PATTERN};
use super::words::NAME_PATTERN;
use crate::action::{InputSpec, Registry, Stage};

/// The JSON Schema (draft 2020-12) of a plan made of the stage kinds in `registry`. What it
/// refuses, `read` refuses too, except a `kind` that is a variable; only `read` can check edges and
/// variables.
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
                "description": "Files whose variables, axes, tools and stages are part of this \
                    plan; paths start from the folder of this file.",
                "type": "array",
                "items": { "type": "string" }
            },
            "plan": {
                "description": "The name of the plan; an included file has none.",
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "name": described(json!({ "type": "string", "pattern": NAME_PATTERN }), "Artifacts are written to out/NAME/.")
                },
                "required": ["name"]
            },
            "vars": {
                "description": "Values that the plan uses as ${name}; --set NAME=VALUE replaces \
                    one.",
                "type": "object",
                "additionalProperties": { "$ref": "#/$defs/scalar" }
            },
            "matrix": {
                "description": "Axes: a stage that uses ${axis}, or depends on a stage that does, \
                    exists once per value.",
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
                "description": "The stages; an input names the stage whose output it takes.",
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
    let has_list = spec.inputs.iter().any(|input| input.many);
    let mut properties = common(spec.reaches_outside, has_list);
    properties.insert(
        KIND.into(),
        json!({ "description": spec.summary, "const": spec.kind }),
    );
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

/// What every stage may say besides its kind; `retries` and `across` only where they have a
/// meaning.
pub(super) fn common(has_retries: bool, has_across: bool) -> Map<String, Value> {
    let mut keys = Map::new();
    let keep = json!({ "anyOf": [
        { "type": "boolean" },
        { "type": "array", "items": { "type": "string" } },
        { "$ref": "#/$defs/variable" }
    ] });
    keys.insert(
        KEEP.into(),
        described(
            keep,
            "What is written to `out/PLAN/STAGE/`: everything, nothing, or these parts and \
                folders. By default everything if no other stage takes the output, otherwise \
                nothing.",
        ),
    );
    let optional = json!({
        "anyOf": [{ "type": "boolean" }, { "$ref": "#/$defs/variable" }],
        "default": false
    });
    keys.insert(
        OPTIONAL.into(),
        described(
            optional,
            "Whether it is built only if the command line names it, or if a stage that is built \
                needs it.",
        ),
    );
    keys.insert(TIMEOUT.into(), timeout());
    if has_retries {
        keys.insert(RETRIES.into(), retries());
    }
    if has_across {
        let across = json!({ "type": "array", "items": { "type": "string" } });
        keys.insert(
            ACROSS.into(),
            described(
                across,
                "Axes of `[matrix]` along which it takes all instances at once. Only for kinds \
                    with an input that takes a list.",
            ),
        );
    }
    keys
}

fn timeout() -> Value {
    let time = json!({ "type": "string", "anyOf": [{ "pattern": TIMEOUT_PATTERN }, { "$ref": "#/$defs/variable" }] });
    described(
        time,
        "How long one of its actions may take: `\"90s\"`, `\"20min\"`, `\"2h\"`, at most \
            `\"1000h\"`.",
    )
}

fn retries() -> Value {
    let count = json!({ "type": "integer", "minimum": 0, "maximum": MAX_RETRIES, "default": 0 });
    variable_too(&described(
        count,
        "How often a failed action is run again. Only for kinds that reach outside of this \
            machine.",
    ))
}

fn slot(input: &InputSpec) -> Value {
    let accepted = input.accepts.join("`, `");
    let name = json!({ "type": "string" });
    let schema = if input.many {
        json!({ "anyOf": [{ "type": "array", "items": name.clone() }, name] })
    } else {
        name
    };
    described(schema, &format!("{} Takes `{accepted}`.", input.meaning))
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
