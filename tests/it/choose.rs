//! `sensitivity` and `choose`: what a scheme costs a tensor, and the best choice within a budget.

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use serde_json::{Value, json};

const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over the \
                    quick brown fox again";

/// The mean KL divergence of a score of one window.
fn kld(road: &StageRunner, score: &Manifest) -> f64 {
    let score: Value = serde_json::from_slice(&road.bytes(score, "window-000/score.json")).unwrap();
    let klds: Vec<f64> = score["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["kld"].as_f64().unwrap())
        .collect();
    klds.iter().sum::<f64>() / klds.len() as f64
}

/// Two tensors measured one at a time cost just what a build with that one override scores.
#[test]
#[ignore = "needs ONNX Runtime"]
fn what_is_measured_is_what_a_build_scores() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let model = road.inspect(&TinyGguf::llama().write());
    let sizes = json!({"prefill": 16, "context": 32});
    let graph = road.graph(&model, "native", sizes.clone());
    let coarse = ["int8-block", "lpbq-32"].map(|scheme| road.graph(&model, scheme, sizes.clone()));
    let reference = json!({"windows": 1, "tokens": 12});
    let reference = road
        .run(
            "reference",
            reference,
            &[("model", &model), ("text", &road.file(TEXT.as_bytes()))],
        )
        .unwrap();
    let params = json!({"match": ["blk.1.ffn_*.weight"]});
    let slots = [
        ("reference", &reference),
        ("graph", &graph),
        ("candidates", &coarse[0]),
        ("candidates", &coarse[1]),
    ];
    let sensitivity = road.run("sensitivity", params, &slots).unwrap();
    let names: Vec<&str> = sensitivity.parts.keys().map(|name| name.as_str()).collect();
    let expected =
        ["ffn_down", "ffn_gate", "ffn_up"].map(|name| format!("blk.1.{name}.weight/costs.json"));
    assert_eq!(names, expected);

    let mut least = 0;
    for (part, manifest) in &sensitivity.parts {
        let tensor = part.as_str().strip_suffix("/costs.json").unwrap();
        let costs = manifest.facts.value()["costs"].clone();
        assert_eq!(
            (&costs[0]["scheme"], &costs[0]["kld"]),
            (&json!("native"), &json!(0.0))
        );
        least += costs
            .as_array()
            .unwrap()
            .iter()
            .map(|cost| cost["bytes"].as_u64().unwrap())
            .min()
            .unwrap();
        for (at, scheme) in [(1, "int8-block"), (2, "lpbq-32")] {
            assert_eq!(costs[at]["scheme"], scheme);
            let weights = json!({"override": [{"match": tensor, "scheme": scheme}]});
            let weights = road
                .run("requant", weights, &[("tensors", &model)])
                .unwrap();
            let graph = road
                .run(
                    "graph",
                    sizes.clone(),
                    &[("model", &model), ("weights", &weights)],
                )
                .unwrap();
            let score = road
                .run(
                    "evaluate",
                    json!({}),
                    &[("reference", &reference), ("graph", &graph)],
                )
                .unwrap();
            let (measured, scored) = (costs[at]["kld"].as_f64().unwrap(), kld(&road, &score));
            assert!(
                measured > 0.0 && (measured - scored).abs() <= 1e-12,
                "{tensor}: {measured:e} is not {scored:e}"
            );
        }
    }

    let choice = road
        .run(
            "mixed-precision",
            json!({"bytes": 1 << 30}),
            &[("sensitivity", &sensitivity)],
        )
        .unwrap();
    let text = String::from_utf8(road.bytes(&choice, "overrides.toml")).unwrap();
    assert!(
        text.contains(r#"{ match = "blk.*.ffn_up.weight", scheme = "native" }"#),
        "{text}"
    );
    // As `requant` takes it.
    let slots = [("tensors", &model), ("choice", &choice)];
    let weights = road
        .run("requant", json!({"scheme": "auto"}), &slots)
        .unwrap();
    let native = road
        .run("requant", json!({}), &[("tensors", &model)])
        .unwrap();
    assert_eq!(
        weights.parts, native.parts,
        "without need nothing is rounded"
    );

    let problem = road
        .run(
            "mixed-precision",
            json!({"bytes": least - 1}),
            &[("sensitivity", &sensitivity)],
        )
        .unwrap_err();
    assert_eq!(
        problem.message,
        format!(
            "3 tensors do not fit into {} bytes: they take {least} at least",
            least - 1
        )
    );
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn candidates_that_differ_in_nothing_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let model = road.inspect(&TinyGguf::llama().write());
    let graph = road.graph(&model, "native", json!({"prefill": 16, "context": 32}));
    let reference = json!({"windows": 1, "tokens": 12});
    let reference = road
        .run(
            "reference",
            reference,
            &[("model", &model), ("text", &road.file(TEXT.as_bytes()))],
        )
        .unwrap();
    let slots = [
        ("reference", &reference),
        ("graph", &graph),
        ("candidates", &graph),
    ];
    let problem = road.run("sensitivity", json!({}), &slots).unwrap_err();
    assert_eq!(
        problem.message,
        "no candidate stores a tensor differently from the graph"
    );
}
