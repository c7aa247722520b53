//! The JSON Schema of plans, checked with plans.

use boon::{Compiler, Schemas};
use kiln::plan::schema;
use serde_json::{Value, json};

/// Validates `plan` with the schema of the real stage kinds.
fn check(plan: &Value) -> Result<(), String> {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler
        .add_resource("plan.schema.json", schema(&kiln::stages::all()))
        .unwrap();
    let index = compiler.compile("plan.schema.json", &mut schemas).unwrap();
    schemas
        .validate(plan, index)
        .map_err(|error| error.to_string())
}

fn check_text(text: &str) -> Result<(), String> {
    check(&toml::from_str(text).unwrap())
}

#[test]
fn every_committed_plan_matches_the_schema() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            found += 1;
            assert_eq!(
                check_text(&std::fs::read_to_string(&path).unwrap()),
                Ok(()),
                "{}",
                path.display()
            );
        }
    }
    assert!(found >= 2);
}

const PLAN: &str = r#"
include = ["common.toml"]
[plan]
name = "a"
[vars]
k = 1
[matrix]
soc = ["sm8650", "sm8750"]
windows = [1, 2]
[tools]
qnn = { pypi = "x==1", sha256 = "", retries = 2 }
[stage.source]
kind = "fetch"
url = "file:a"
timeout = "20min"
retries = "${k}"
[stage.weights]
kind = "requant"
tensors = "model"
scheme = "${scheme}"
override = [{ match = "*", scheme = "int8-block" }]
[stage.npu]
kind = "context-bin"
graph = "graph"
soc = "${soc}"
graphs = ["decode"]
weight_sharing = "${k}"
[stage.reference]
kind = "reference"
model = "model"
text = "text"
windows = "${windows}"
[stage.report]
kind = "validate"
inputs = ["htp", "npu"]
across = ["soc"]
limits = { htp = { kld = 1e-3, perplexity = 16 }, npu = { size_bytes = "${size}" } }
keep = ["report.txt"]
"#;

#[test]
fn valid_plans_match_and_mistakes_do_not() {
    assert_eq!(check_text(PLAN), Ok(()));
    for (good, bad) in [
        ("[vars]", "[var]"),
        ("name = \"a\"", "nam = \"a\""),
        ("\"requant\"", "\"reqant\""),
        ("tensors = \"model\"", ""),
        ("tensors = \"model\"", "tensor = \"model\""),
        ("\"${scheme}\"", "\"f61\""),
        ("\"int8-block\"", "\"int8\""),
        ("soc = \"${soc}\"", "soc = \"sm865\""),
        ("[\"decode\"]", "[\"encode\"]"),
        ("weight_sharing = \"${k}\"", "weight_sharing = \"yes\""),
        ("windows = \"${windows}\"", "windows = 0"),
        ("windows = \"${windows}\"", "windows = \"8\""),
        ("\"20min\"", "\"20 minutes\""),
        ("retries = \"${k}\"", "retries = -1"),
        ("graph = \"graph\"", "graph = \"graph\"\nretries = 1"),
        ("graph = \"graph\"", "graph = \"graph\"\nacross = [\"soc\"]"),
        ("kld = 1e-3", "kdl = 1e-3"),
        ("[1, 2]", "[]"),
        ("pypi = \"x==1\", ", ""),
    ] {
        let mistaken = PLAN.replacen(good, bad, 1);
        assert_ne!(mistaken, PLAN, "{good}");
        assert!(check_text(&mistaken).is_err(), "{bad} is accepted");
    }
}

/// Every kind has its slots and parameters, each with a description. No kind has a parameter with
/// the name of a common key.
#[test]
fn the_schema_matches_the_stage_specs() {
    let (registry, schema) = (kiln::stages::all(), schema(&kiln::stages::all()));
    let kinds = schema["$defs"]["stage"]["oneOf"].as_array().unwrap();
    assert_eq!(kinds.len(), registry.kinds().count());
    for kind in kinds {
        let name = kind["title"].as_str().unwrap();
        let spec = registry.get(name).unwrap().spec();
        let mut expected = vec!["kind", "keep", "optional", "timeout"];
        expected.extend(spec.params);
        let mut has_many = false;
        for slot in spec.inputs {
            expected.push(slot.name);
            has_many |= slot.many;
        }
        if spec.reaches_outside {
            expected.push("retries");
        }
        if has_many {
            expected.push("across");
        }
        expected.sort();
        let properties = kind["properties"].as_object().unwrap();
        let mut found: Vec<&str> = properties.keys().map(String::as_str).collect();
        found.sort();
        assert_eq!(found, expected, "{name}");
        for (key, property) in properties {
            assert!(
                property["description"].is_string(),
                "{name}.{key} has no description"
            );
        }
        for (param, slot) in spec.keyed {
            assert!(spec.params.contains(param));
            let slot = spec.inputs.iter().find(|input| input.name == *slot);
            assert!(slot.unwrap().many);
        }
    }
}

#[test]
fn the_schema_has_defaults_and_enumerations() {
    let schema = schema(&kiln::stages::all());
    let kinds = schema["$defs"]["stage"]["oneOf"].as_array().unwrap();
    let of = |kind: &str| &kinds.iter().find(|it| it["title"] == kind).unwrap()["properties"];
    assert_eq!(of("graph")["context"]["default"], 512);
    let chips = &of("context-bin")["soc"]["anyOf"][0]["anyOf"][0]["enum"];
    assert!(chips.as_array().unwrap().contains(&json!("sm8650")));
    assert_eq!(of("fetch")["kind"]["const"], "fetch");
    assert_eq!(
        of("sensitivity")["windows"]["anyOf"][0]["minimum"],
        json!(1)
    );
}
