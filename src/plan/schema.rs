//! The JSON Schema of a plan, for editors. It has the same kinds, inputs and parameters as `read`.

use serde_json::{Map, Value, json};

use super::common::{
    ACROSS, KEEP, KIND, MAX_RETRIES, OPTIONAL, RETRIES, SDK, TIMEOUT, TIMEOUT_PATTERN,
};
use super::words::NAME_PATTERN;
use crate::action::{InputSpec, Registry, Stage};

/// The JSON Schema (draft 2020-12) of a plan with the stage kinds in `registry`. `read` rejects
/// everything that it rejects, except a `kind` that is a variable. Only `read` checks edges and
/// variables.
pub fn schema(registry: &Registry) -> Value {
    let mut kinds = vec![];
    for kind in registry.kinds() {
        if let Some(kind) = registry.get(kind) {
            kinds.push(stage(kind));
        }
    }
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
                    "name": {
                        "type": "string",
                        "pattern": NAME_PATTERN,
                        "description": "Artifacts are written to out/NAME/."
                    }
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
                "additionalProperties": {
                    "type": "array",
                    "minItems": 1,
                    "items": { "$ref": "#/$defs/scalar" }
                }
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
            SDK: { "description": "The folder of an unpacked SDK of Qualcomm.", "type": "string" },
            "sha256": { "description": "64 hexadecimal digits, of the wheel.", "type": "string" },
            "timeout": timeout(),
            "retries": retries()
        },
        "oneOf": [{ "required": ["pypi"] }, { "required": ["url"] }, { "required": [SDK] }]
    })
}

/// The schema of a stage of one kind.
fn stage(stage: &dyn Stage) -> Value {
    let spec = stage.spec();
    let params = stage.schema().as_value().clone();
    let has_list = spec.inputs.iter().any(|input| input.many);
    let mut properties = common(spec.reaches_outside, has_list);
    properties.insert(
        KIND.into(),
        json!({ "description": spec.summary, "const": spec.kind }),
    );
    let mut required = vec![Value::from(KIND)];
    for input in spec.inputs {
        properties.insert(input.name.into(), slot(input));
        if input.required {
            required.push(input.name.into());
        }
    }
    for (name, param) in params["properties"].as_object().into_iter().flatten() {
        properties.insert(name.clone(), or_variable(param));
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

/// The keys that a stage of any kind may have, except `kind`. `retries` and `across` only if they
/// have a meaning.
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
    let time = json!({
        "type": "string",
        "anyOf": [{ "pattern": TIMEOUT_PATTERN }, { "$ref": "#/$defs/variable" }]
    });
    described(
        time,
        "How long one of its actions may take: `\"90s\"`, `\"20min\"`, `\"2h\"`, at most \
            `\"1000h\"`.",
    )
}

fn retries() -> Value {
    let count = json!({ "type": "integer", "minimum": 0, "maximum": MAX_RETRIES, "default": 0 });
    or_variable(&described(
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

/// `schema` without null, which TOML does not have, and with `${name}` as an alternative to each
/// value that is not free text.
fn or_variable(schema: &Value) -> Value {
    let Some(keywords) = schema.as_object() else {
        return schema.clone();
    };
    let mut fields = Map::new();
    for (keyword, value) in keywords {
        let is_null_default = keyword == "default" && value.is_null();
        if !is_null_default {
            fields.insert(keyword.clone(), with_variables(keyword, value));
        }
    }
    for keyword in ["type", "anyOf", "enum"] {
        if let Some(Value::Array(choices)) = fields.get_mut(keyword) {
            choices.retain(|choice| *choice != "null" && choice["type"] != "null");
            if let ("type", [only]) = (keyword, choices.as_slice()) {
                let only = only.clone();
                fields.insert(keyword.into(), only);
            }
        }
    }
    let is_scalar = match fields.get("type") {
        Some(Value::String(name)) => matches!(name.as_str(), "integer" | "number" | "boolean"),
        _ => false,
    };
    if !is_scalar && !fields.contains_key("enum") && !fields.contains_key("oneOf") {
        return Value::Object(fields);
    }
    let description = fields.remove("description");
    let default = fields.remove("default");
    let mut either = json!({ "anyOf": [fields, { "$ref": "#/$defs/variable" }] });
    if let Some(description) = description {
        either["description"] = description;
    }
    if let Some(default) = default {
        either["default"] = default;
    }
    either
}

/// Applies [`or_variable`] to the schemas in the value of a keyword.
fn with_variables(keyword: &str, value: &Value) -> Value {
    match (keyword, value) {
        ("items" | "additionalProperties", schema) => or_variable(schema),
        ("properties", Value::Object(properties)) => {
            let mut map = Map::new();
            for (name, schema) in properties {
                map.insert(name.clone(), or_variable(schema));
            }
            Value::Object(map)
        }
        ("anyOf", Value::Array(schemas)) => schemas.iter().map(or_variable).collect(),
        _ => value.clone(),
    }
}
