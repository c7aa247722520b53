//! `sensitivity` and `mixed-precision`: the cost of each scheme for each tensor, and the best
//! choice within a budget.

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use serde_json::{Value, json};

/// The mean KL divergence of an evaluation of one window.
fn kld(runner: &StageRunner, score: &Manifest) -> f64 {
    let score: Value = runner.json(score, "window-000/score.json");
    let tokens = score["tokens"].as_array().unwrap();
    let kld = |token: &Value| token["kld"].as_f64().unwrap();
    tokens.iter().map(kld).sum::<f64>() / tokens.len() as f64
}

/// The cost of one scheme for one tensor equals the score of a build with that override.
#[test]
#[ignore = "needs ONNX Runtime"]
fn sensitivity_equals_the_score_of_a_build_with_that_override() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let model = runner.inspect(&TinyGguf::llama().write());
    let sizes = json!({"prefill": 16, "context": 32});
    let graph = runner.graph(&model, "native", sizes.clone());
    let coarse = ["int8-block", "lpbq-32", "lpbq-32-shifted"].map(|scheme| {
        let layers = json!({"override": [{"match": "blk.*", "scheme": scheme}]});
        let weights = runner
            .run("requant", layers, &[("tensors", &model)])
            .unwrap();
        let slots = [("model", &model), ("weights", &weights)];
        runner.run("graph", sizes.clone(), &slots).unwrap()
    });
    let reference = json!({"windows": 1, "tokens": 12});
    let reference = runner.reference(&model, reference);
    let params = json!({"match": ["blk.1.ffn_*.weight"]});
    let slots = [
        ("reference", &reference),
        ("graph", &graph),
        ("candidates", &coarse[0]),
        ("candidates", &coarse[1]),
        ("candidates", &coarse[2]),
    ];
    let sensitivity = runner.run("sensitivity", params, &slots).unwrap();
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
        let bytes = |cost: &Value| cost["bytes"].as_u64().unwrap();
        least += costs.as_array().unwrap().iter().map(bytes).min().unwrap();
        for (at, scheme) in [(1, "int8-block"), (2, "lpbq-32"), (3, "lpbq-32-shifted")] {
            assert_eq!(costs[at]["scheme"], scheme);
            let weights = json!({"override": [{"match": tensor, "scheme": scheme}]});
            let weights = runner
                .run("requant", weights, &[("tensors", &model)])
                .unwrap();
            let graph = runner
                .run(
                    "graph",
                    sizes.clone(),
                    &[("model", &model), ("weights", &weights)],
                )
                .unwrap();
            let score = runner.evaluate(&reference, "graph", &graph);
            let (measured, scored) = (costs[at]["kld"].as_f64().unwrap(), kld(&runner, &score));
            assert!(
                measured > 0.0 && (measured - scored).abs() <= 1e-12,
                "{tensor}: {measured:e} is not {scored:e}"
            );
        }
    }

    let choice = runner
        .run(
            "mixed-precision",
            json!({"bytes": 1 << 30}),
            &[("sensitivity", &sensitivity)],
        )
        .unwrap();
    let text = runner.text(&choice, "overrides.toml");
    assert!(
        text.contains(r#"{ match = "blk.*.ffn_up.weight", scheme = "native" }"#),
        "{text}"
    );
    // `requant` accepts the choice.
    let slots = [("tensors", &model), ("assignment", &choice)];
    let weights = runner
        .run("requant", json!({"scheme": "auto"}), &slots)
        .unwrap();
    let native = runner
        .run("requant", json!({}), &[("tensors", &model)])
        .unwrap();
    assert_eq!(
        weights.parts, native.parts,
        "within the budget, nothing is rounded"
    );

    let problem = runner
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

/// The cost of a group equals the score of a build with the scheme for all its tensors, and the
/// costs of its tensors, as `mixed-precision` computes them, add up to it.
#[test]
#[ignore = "needs ONNX Runtime"]
fn groups_are_measured_together() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let model = runner.inspect(&TinyGguf::llama().write());
    let sizes = json!({"prefill": 16, "context": 32});
    let graph = runner.graph(&model, "native", sizes.clone());
    let candidates =
        ["lpbq-32", "int8-channel"].map(|scheme| runner.graph(&model, scheme, sizes.clone()));
    let reference = runner.reference(&model, json!({"windows": 1, "tokens": 12}));
    let params = json!({"match": ["blk.*.ffn_*.weight"], "groups": true});
    let slots = [
        ("reference", &reference),
        ("graph", &graph),
        ("candidates", &candidates[0]),
        ("candidates", &candidates[1]),
    ];
    let sensitivity = runner.run("sensitivity", params, &slots).unwrap();
    let names: Vec<&str> = sensitivity.parts.keys().map(|name| name.as_str()).collect();
    let groups = [
        "blk.0",
        "blk.1",
        "ffn_down.weight",
        "ffn_gate.weight",
        "ffn_up.weight",
    ];
    assert_eq!(names, groups.map(|group| format!("{group}/costs.json")));

    for (group, pattern, members) in [
        ("blk.1", "blk.1.ffn_*.weight", 3),
        ("ffn_up.weight", "blk.*.ffn_up.weight", 2),
    ] {
        let facts = sensitivity
            .part(&format!("{group}/costs.json"))
            .unwrap()
            .facts
            .value();
        let tensors = facts["tensors"].as_array().unwrap();
        assert_eq!(tensors.len(), members);
        assert_eq!(tensors[0]["own"]["scheme"], "native");
        assert_eq!(tensors[0]["candidates"][1]["scheme"], "int8-channel");
        let overrides = json!({"override": [{"match": pattern, "scheme": "lpbq-32"}]});
        let weights = runner
            .run("requant", overrides, &[("tensors", &model)])
            .unwrap();
        let slots = [("model", &model), ("weights", &weights)];
        let changed = runner.run("graph", sizes.clone(), &slots).unwrap();
        let score = runner.evaluate(&reference, "graph", &changed);
        let (measured, scored) = (facts["kld"].as_f64().unwrap(), kld(&runner, &score));
        assert!(
            measured > 0.0 && (measured - scored).abs() <= 1e-12,
            "{group}: {measured:e} is not {scored:e}"
        );
    }

    // At the smallest size all tensors take `lpbq-32`, so that the expected cost is the sum.
    let sum = |groups: &[&str]| -> f64 {
        let cost = |group: &&str| {
            let part = sensitivity.part(&format!("{group}/costs.json")).unwrap();
            part.facts.value()["kld"].as_f64().unwrap()
        };
        groups.iter().map(cost).sum()
    };
    let mut least = 0;
    for group in ["blk.0", "blk.1"] {
        let facts = sensitivity
            .part(&format!("{group}/costs.json"))
            .unwrap()
            .facts
            .value();
        for tensor in facts["tensors"].as_array().unwrap() {
            least += tensor["candidates"][0]["bytes"].as_u64().unwrap();
        }
    }
    let slots = [("sensitivity", &sensitivity)];
    let choice = runner
        .run("mixed-precision", json!({ "bytes": least }), &slots)
        .unwrap();
    let expected = choice.part("overrides.toml").unwrap().facts.value()["kld"]
        .as_f64()
        .unwrap();
    // The last groups that are fitted are the kinds.
    let kinds = sum(&groups[2..]);
    assert!(
        (expected / kinds - 1.0).abs() < 1e-9,
        "{expected:e} is not {kinds:e}"
    );
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn identical_candidates_are_rejected() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let model = runner.inspect(&TinyGguf::llama().write());
    let graph = runner.graph(&model, "native", json!({"prefill": 16, "context": 32}));
    let reference = json!({"windows": 1, "tokens": 12});
    let reference = runner.reference(&model, reference);
    let slots = [
        ("reference", &reference),
        ("graph", &graph),
        ("candidates", &graph),
    ];
    let problem = runner.run("sensitivity", json!({}), &slots).unwrap_err();
    assert_eq!(
        problem.message,
        "no candidate stores a tensor differently from the graph"
    );
}
