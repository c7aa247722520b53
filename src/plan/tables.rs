//! Markdown tables of the inputs and parameters of each stage kind, for `docs/plan-format.md`.

use serde_json::{Map, Value};

use super::schema::common;
use crate::action::{ANY, InputSpec, Registry, Stage, StageSpec};

/// Maximum number of values that are listed in the row of a parameter. More have their own table.
const MAX_LISTED: usize = 4;

/// The tables of one kind, or of all kinds together.
pub struct Tables {
    /// The kind, [`KINDS`] or [`EVERY_STAGE`].
    pub name: &'static str,
    /// One line about it.
    pub summary: &'static str,
    /// The tables.
    pub markdown: String,
}

/// The name of the list of all kinds.
pub(super) const KINDS: &str = "kinds";
/// The name of the table of keys that a stage of any kind may have.
pub(super) const EVERY_STAGE: &str = "every stage";

/// The list of all kinds in `registry`, the table of keys that a stage of any kind may have, and
/// the tables of each kind.
pub fn tables(registry: &Registry) -> Vec<Tables> {
    let mut all = vec![
        Tables {
            name: KINDS,
            summary: "what a stage can do",
            markdown: kinds(registry),
        },
        Tables {
            name: EVERY_STAGE,
            summary: "what a stage of any kind may have",
            markdown: every_stage(),
        },
    ];
    for kind in registry.kinds() {
        if let Some(stage) = registry.get(kind) {
            let spec = stage.spec();
            all.push(Tables {
                name: spec.kind,
                summary: spec.summary,
                markdown: of_kind(stage),
            });
        }
    }
    all
}

fn kinds(registry: &Registry) -> String {
    let mut markdown = "| kind | output | purpose |\n|---|---|---|\n".to_string();
    for kind in registry.kinds() {
        if let Some(stage) = registry.get(kind) {
            let StageSpec {
                output, summary, ..
            } = stage.spec();
            markdown += &format!("| [`{kind}`](#{kind}) | `{output}` | {} |\n", cell(summary));
        }
    }
    markdown
}

fn every_stage() -> String {
    let keys = common(true, true);
    let mut rows = Rows::new("key");
    for (name, schema) in &keys {
        rows.add(name, schema, false);
    }
    rows.markdown
}

fn of_kind(stage: &dyn Stage) -> String {
    let spec = stage.spec();
    let mut markdown = format!("Output: `{}`.\n", spec.output);
    if spec.inputs.is_empty() {
        markdown += "\nNo inputs.\n";
    } else {
        markdown += "\n| input | takes | meaning |\n|---|---|---|\n";
        for input in spec.inputs {
            let meaning = cell(input.meaning);
            markdown += &format!("| `{}` | {} | {meaning} |\n", input.name, accepted(input));
        }
    }
    let schema = stage.schema().as_value();
    let Some(properties) = schema["properties"].as_object() else {
        return markdown + "\nNo parameters.\n";
    };
    let mut rows = Rows::new("parameter");
    let mut nested = Nested::default();
    for name in spec.params {
        let Some(param) = properties.get(*name) else {
            continue;
        };
        rows.add(name, param, is_required(schema, name));
        nested.add(name, param, spec);
    }
    if spec.params.is_empty() {
        return markdown + "\nNo parameters.\n";
    }
    markdown + "\n" + &rows.markdown + &nested.markdown()
}

/// The artifacts that an input accepts: "`model`; optional", "one or a list: `onnx`".
fn accepted(input: &InputSpec) -> String {
    let mut kinds = vec![];
    for kind in input.accepts {
        match *kind {
            ANY => kinds.push("any output".to_string()),
            kind => kinds.push(format!("`{kind}`")),
        }
    }
    let mut text = kinds.join(", ");
    if input.many {
        text = format!("one or a list: {text}");
    }
    if !input.required {
        text += "; optional";
    }
    text
}

/// A table of keys: name, type, default and meaning.
struct Rows {
    markdown: String,
}

impl Rows {
    fn new(title: &str) -> Self {
        Rows {
            markdown: format!("| {title} | value | default | meaning |\n|---|---|---|---|\n"),
        }
    }

    fn add(&mut self, name: &str, schema: &Value, required: bool) {
        let default = match &schema["default"] {
            Value::Null if required => "required".into(),
            Value::Null => "-".into(),
            default => format!("`{}`", toml(default)),
        };
        let meaning = cell(schema["description"].as_str().unwrap_or_default());
        let value = allowed(schema);
        self.markdown += &format!("| `{name}` | {value} | {default} | {meaning} |\n");
    }
}

/// Tables below the rows of a kind: the keys of tables, and the meanings of values.
#[derive(Default)]
struct Nested<'s> {
    keys: Vec<(String, &'s Value)>,
    /// Each list of values once, with all parameters that have it.
    values: Vec<(Vec<String>, &'s [Value])>,
}

impl<'s> Nested<'s> {
    /// Adds the tables of the parameter at `path`.
    fn add(&mut self, path: &str, schema: &'s Value, spec: &StageSpec) {
        for variant in variants(schema) {
            if let Some(values) = variant["oneOf"].as_array() {
                match self.values.iter_mut().find(|(_, other)| other == values) {
                    Some((paths, _)) => paths.push(path.into()),
                    None => self.values.push((vec![path.into()], values)),
                }
            }
            if let Some(properties) = variant["properties"].as_object() {
                self.keys.push((path.into(), variant));
                for (name, property) in properties {
                    self.add(&format!("{path}.{name}"), property, spec);
                }
            }
            if variant["items"].is_object() {
                self.add(path, &variant["items"], spec);
            }
            if variant["additionalProperties"].is_object() {
                let is_by_stage = spec.keyed.iter().any(|(param, _)| *param == path);
                let name = if is_by_stage { "STAGE" } else { "NAME" };
                let path = format!("{path}.{name}");
                self.add(&path, &variant["additionalProperties"], spec);
            }
        }
    }

    fn markdown(&self) -> String {
        let mut markdown = String::new();
        for (path, schema) in &self.keys {
            let mut rows = Rows::new(&format!("key of `{path}`"));
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                rows.add(name, property, is_required(schema, name));
            }
            markdown += &format!("\n{}", rows.markdown);
        }
        for (paths, values) in &self.values {
            markdown += &format!("\n| `{}` | meaning |\n|---|---|\n", paths.join("`, `"));
            for value in *values {
                let meaning = cell(value["description"].as_str().unwrap_or_default());
                markdown += &format!("| `{}` | {meaning} |\n", toml(&value["const"]));
            }
        }
        markdown
    }
}

fn is_required(schema: &Value, name: &str) -> bool {
    match schema["required"].as_array() {
        Some(required) => required.contains(&name.into()),
        None => false,
    }
}

/// The alternatives of a schema, without null and without variables.
fn variants(schema: &Value) -> Vec<&Value> {
    let mut found = vec![];
    match schema["anyOf"].as_array() {
        Some(alternatives) if schema["type"].is_null() => {
            for alternative in alternatives {
                if alternative["type"] != "null" && alternative["$ref"].is_null() {
                    found.extend(variants(alternative));
                }
            }
        }
        _ => found.push(schema),
    }
    found
}

/// The values that a schema allows: `integer from 1 to 3`, `list of strings`, `"f32"` or `"f16"`.
fn allowed(schema: &Value) -> String {
    let texts: Vec<String> = variants(schema).into_iter().map(one_value).collect();
    texts.join(" or ")
}

fn one_value(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        return listed(values);
    }
    if let Some(values) = schema["oneOf"].as_array() {
        if values.len() > MAX_LISTED {
            return "string, see below".into();
        }
        let constants: Vec<Value> = values.iter().map(|value| value["const"].clone()).collect();
        return listed(&constants);
    }
    match type_of(schema) {
        "array" => match one_value(&schema["items"]).as_str() {
            "string" => "list of strings".into(),
            "table" => "list of tables".into(),
            other => format!("list of {other}"),
        },
        "object" => match &schema["additionalProperties"] {
            Value::Object(_) => match type_of(&schema["additionalProperties"]) {
                "object" => "table of tables".into(),
                _ => "table of strings".into(),
            },
            _ => "table".into(),
        },
        number @ ("integer" | "number") => number.to_string() + &range(schema),
        other => other.into(),
    }
}

/// The type of a schema other than null.
fn type_of(schema: &Value) -> &str {
    let Value::Array(types) = &schema["type"] else {
        return schema["type"].as_str().unwrap_or_default();
    };
    for name in types {
        if let Some(name) = name.as_str()
            && name != "null"
        {
            return name;
        }
    }
    ""
}

/// The range of a number. That an integer is not negative is not mentioned.
fn range(schema: &Value) -> String {
    let above = bound(schema, "exclusiveMinimum");
    let least = bound(schema, "minimum");
    let most = bound(schema, "maximum");
    match (above, least, most) {
        (Some(above), _, Some(most)) => format!(" above {above}, at most {most}"),
        (Some(above), _, None) => format!(" above {above}"),
        (None, Some(least), Some(most)) => format!(" from {least} to {most}"),
        (None, Some(least), None) if least != "0" => format!(", at least {least}"),
        (None, None, Some(most)) => format!(", at most {most}"),
        (None, _, None) => String::new(),
    }
}

fn bound(schema: &Value, keyword: &str) -> Option<String> {
    match &schema[keyword] {
        number @ Value::Number(_) => Some(toml(number)),
        _ => None,
    }
}

fn listed(values: &[Value]) -> String {
    let mut texts = vec![];
    for value in values {
        texts.push(format!("`{}`", toml(value)));
    }
    texts.join(", ")
}

/// A value as it is written in a plan.
fn toml(value: &Value) -> String {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_u64() => float.to_string(),
            _ => number.to_string(),
        },
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(toml).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(map) => inline_table(map),
        other => other.to_string(),
    }
}

fn inline_table(map: &Map<String, Value>) -> String {
    let mut pairs = vec![];
    for (key, value) in map {
        pairs.push(format!("{key} = {}", toml(value)));
    }
    if pairs.is_empty() {
        return "{}".into();
    }
    format!("{{ {} }}", pairs.join(", "))
}

/// A text as one cell of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The value cell of a parameter with this schema.
    #[track_caller]
    fn check(schema: Value, expected: &str) {
        assert_eq!(allowed(&schema), expected);
    }

    #[test]
    fn a_value_is_described_as_a_plan_writes_it() {
        check(json!({ "type": ["string", "null"] }), "string");
        check(json!({ "type": "integer", "minimum": 0 }), "integer");
        check(
            json!({ "type": "integer", "minimum": 1 }),
            "integer, at least 1",
        );
        check(
            json!({ "type": "integer", "minimum": 0, "maximum": 12 }),
            "integer from 0 to 12",
        );
        check(
            json!({ "type": "number", "exclusiveMinimum": 0.0, "maximum": 1.0 }),
            "number above 0, at most 1",
        );
        check(json!({ "enum": ["f32", "f16"] }), "`\"f32\"`, `\"f16\"`");
        let few = json!({ "oneOf": [{ "const": "auto" }, { "const": "layers" }] });
        check(
            json!({ "anyOf": [{ "type": "integer" }, few, { "type": "null" }] }),
            "integer or `\"auto\"`, `\"layers\"`",
        );
        let strings = json!({ "type": "array", "items": { "type": "string" } });
        check(
            json!({ "anyOf": [strings, { "$ref": "#/$defs/variable" }] }),
            "list of strings",
        );
        let tables = json!({ "type": "object", "additionalProperties": { "type": "object" } });
        check(tables, "table of tables");
    }

    #[test]
    fn a_default_is_written_as_in_a_plan() {
        assert_eq!(toml(&json!(60.0)), "60");
        assert_eq!(toml(&json!(0.25)), "0.25");
        assert_eq!(toml(&json!(["a", "b"])), "[\"a\", \"b\"]");
        assert_eq!(toml(&json!({ "head": "cpu" })), "{ head = \"cpu\" }");
    }

    #[test]
    fn keys_and_values_of_a_parameter_have_tables_of_their_own() {
        let processor = json!({ "oneOf": [
            { "const": "npu", "description": "The chip." },
            { "const": "cpu", "description": "The\nhost." }
        ] });
        let place = json!({
            "type": "object",
            "properties": { "embedding": processor, "head": processor },
            "required": ["head"]
        });
        let spec = StageSpec {
            kind: "graph",
            version: 1,
            summary: "",
            output: "onnx",
            inputs: &[],
            params: &["place"],
            keyed: &[],
            reaches_outside: false,
            measures: false,
        };
        let mut nested = Nested::default();
        nested.add("place", &place, &spec);
        assert_eq!(
            nested.markdown(),
            "\n| key of `place` | value | default | meaning |\n|---|---|---|---|\n\
             | `embedding` | `\"npu\"`, `\"cpu\"` | - |  |\n\
             | `head` | `\"npu\"`, `\"cpu\"` | required |  |\n\
             \n| `place.embedding`, `place.head` | meaning |\n|---|---|\n\
             | `\"npu\"` | The chip. |\n\
             | `\"cpu\"` | The host. |\n"
        );
    }
}
