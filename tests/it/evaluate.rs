//! `evaluate` and `validate` with ONNX graphs in ONNX Runtime.

use crate::support::stage_runner::{StageRunner, TEXT};
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use serde_json::{Value, json};

/// Evaluates a tiny model whose graph `change` modifies. Returns the report, or the message if a
/// limit is missed.
fn evaluate_tiny(
    change: impl Fn(&StageRunner, &mut Manifest),
) -> std::result::Result<Value, String> {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let (model, mut graph) = runner.model(
        &TinyGguf::llama().write(),
        "native",
        json!({"prefill": 16, "context": 32}),
    );
    let params = json!({"windows": 3, "tokens": 12, "prompt": "the dog", "greedy": 5});
    let reference = runner.reference(&model, params);
    change(&runner, &mut graph);
    let score = runner.evaluate(&reference, "graph", &graph);
    let limits = json!({"ppl_ratio": 1e-4, "kld": 1e-6, "same_top": 0.99, "greedy": 5});
    let limits = json!({"limits": {"evaluation": limits}});
    let report = runner
        .run("validate", limits, &[("evaluation", &score)])
        .map_err(|problem| problem.message)?;
    println!("{}", runner.text(&report, "report.txt"));
    Ok(runner.json(&report, "report.json"))
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn an_unmodified_graph_meets_every_limit() {
    let report = evaluate_tiny(|_, _| ()).unwrap();
    let candidate = &report["candidates"]["evaluation"];
    assert_eq!(candidate["fidelity"]["tokens"], 33);
    assert_eq!(candidate["greedy"]["decoded"].as_array().unwrap().len(), 2);
    let kinds: Vec<&String> = candidate["ranges"].as_object().unwrap().keys().collect();
    assert_eq!(kinds, ["down", "gate_up", "key", "residual", "scores"]);
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn one_flipped_scale_sign_is_detected() {
    let flip = |bytes: &mut Vec<u8>| bytes[1] ^= 0x80;
    let message = evaluate_tiny(|runner, graph| {
        runner.change_bytes(graph, "weights/blk.1.ffn_down.weight/scales", flip)
    })
    .unwrap_err();
    assert!(
        message.contains("MISSED evaluation       mean KL divergence"),
        "{message}"
    );
}

/// A limit for SmolLM2, whose perplexity on the first windows of the text is 13.
const PERPLEXITY: f64 = 16.0;

/// SmolLM2-135M-Instruct Q4_1 on 8 windows of 128 tokens; best with `--release`.
#[test]
#[ignore = "needs ONNX Runtime and a real model; takes minutes"]
fn one_flipped_scale_sign_is_detected_in_a_real_model() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let (model, mut graph) = runner.model(
        &std::fs::read(tools::smollm2()).unwrap(),
        "native",
        json!({}),
    );
    let text = runner.file(include_bytes!("../../plans/data/eval.txt"));
    let prompt =
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let reference = runner
        .run(
            "reference",
            json!({"prompt": prompt}),
            &[("model", &model), ("text", &text)],
        )
        .unwrap();
    // Both compute in f32 with the same weights: the mean KL divergence is 2e-11. Of 24 flips at
    // random places, the smallest causes 1e-6 and most cause more than 1e-4.
    let limits = json!({"ppl_ratio": 1e-5, "kld": 1e-7, "same_top": 1.0, "greedy": 16,
        "perplexity": PERPLEXITY});
    let limits = json!({"limits": {"evaluation": limits}});
    let validate_windows = |graph: &Manifest, params| {
        let score = runner
            .run(
                "evaluate",
                params,
                &[("reference", &reference), ("graph", graph)],
            )
            .unwrap();
        runner.run("validate", limits.clone(), &[("evaluation", &score)])
    };
    let report = validate_windows(&graph, json!({})).unwrap();
    println!("{}", runner.text(&report, "report.txt"));

    runner.change_bytes(
        &mut graph,
        "weights/blk.15.ffn_down.weight/scales",
        |bytes| bytes[1] ^= 0x80,
    );
    let problem = validate_windows(&graph, json!({"windows": 2})).unwrap_err();
    println!("one flipped scale sign:\n{}", problem.message);
    assert!(
        problem
            .message
            .contains("MISSED evaluation       mean KL divergence"),
        "{problem}"
    );
}

/// The rows of queries and keys are taken as half-split instead of interleaved, so that RoPE
/// rotates the wrong pairs.
#[test]
#[ignore = "needs ONNX Runtime and a real model"]
fn the_wrong_rope_order_is_detected() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let mut model = runner.inspect(&std::fs::read(tools::smollm2()).unwrap());
    let facts = &mut model.parts.get_mut("model.json").unwrap().facts;
    let mut wrong = facts.value().clone();
    assert_eq!(wrong["rope_rows"].take(), "interleaved");
    wrong["rope_rows"] = json!("half-split");
    *facts = wrong.into();
    let graph = runner.graph(&model, "native", json!({}));
    let text = runner.file(include_bytes!("../../plans/data/eval.txt"));
    let reference = runner
        .run(
            "reference",
            json!({"windows": 1}),
            &[("model", &model), ("text", &text)],
        )
        .unwrap();
    let score = runner.evaluate(&reference, "graph", &graph);
    // Reference and candidate agree, so only the perplexity of the model detects it.
    let limits = json!({"perplexity": PERPLEXITY, "ppl_ratio": 1e-5, "kld": 1e-7});
    let limits = json!({"limits": {"evaluation": limits}});
    let problem = runner
        .run("validate", limits, &[("evaluation", &score)])
        .unwrap_err();
    println!("{}", problem.message);
    assert!(
        problem
            .message
            .contains("MISSED evaluation       perplexity of the reference"),
        "{problem}"
    );
    assert!(problem.message.contains("1 of"), "{problem}");
}

/// Evaluates and validates `graph`. Returns the message if a limit is missed.
fn validate(
    runner: &StageRunner,
    model: &Manifest,
    graph: &Manifest,
) -> std::result::Result<(), String> {
    let params = json!({"windows": 3, "tokens": 12, "prompt": "the dog", "greedy": 5});
    let reference = runner.reference(model, params);
    let score = runner.evaluate(&reference, "graph", graph);
    let limits = json!({"ppl_ratio": 1e-4, "kld": 1e-6, "same_top": 0.99, "greedy": 5});
    let limits = json!({"limits": {"evaluation": limits}});
    match runner.run("validate", limits, &[("evaluation", &score)]) {
        Ok(_) => Ok(()),
        Err(problem) => Err(problem.message),
    }
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn large_key_biases_need_centred_keys() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let model = runner.inspect(&TinyGguf::qwen2().large_biases().write());
    let validate_with = |centre: &str| {
        let params = json!({"prefill": 16, "context": 32, "key_centre": centre});
        validate(&runner, &model, &runner.graph(&model, "native", params))
    };
    assert_eq!(validate_with("bias"), Ok(()));
    let message = validate_with("none").unwrap_err();
    for missed in [
        "mean KL divergence",
        "range of scores",
        "masked scores below visible ones",
    ] {
        assert!(
            message.contains(&format!("MISSED evaluation       {missed}")),
            "{missed}: {message}"
        );
    }
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn keys_centred_by_calibration_keep_the_logits() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    for gguf in [TinyGguf::llama(), TinyGguf::qwen2().large_biases()] {
        let (model, graph) = runner.model(
            &gguf.write(),
            "native",
            json!({"prefill": 16, "context": 32}),
        );
        let text = runner.file(TEXT.as_bytes());
        let calibrate = |graph: &Manifest| {
            let slots = [("graph", graph), ("model", &model), ("text", &text)];
            let calibration = runner
                .run("calibrate", json!({"windows": 2}), &slots)
                .unwrap();
            let means: Value = runner.json(&calibration, "key_means.json");
            (calibration, means)
        };
        let (calibration, means) = calibrate(&graph);
        let weights = runner
            .run("requant", json!({}), &[("tensors", &model)])
            .unwrap();
        let params = json!({"prefill": 16, "context": 32, "key_centre": "calibration"});
        let slots = [
            ("model", &model),
            ("weights", &weights),
            ("calibration", &calibration),
        ];
        let centred = runner.run("graph", params, &slots).unwrap();
        assert_eq!(validate(&runner, &model, &centred), Ok(()));
        let (_, means_of_centred) = calibrate(&centred);
        let first = |means: &Value| means["0"][3].as_f64().unwrap();
        assert!(
            (first(&means) - first(&means_of_centred)).abs() < 1e-3,
            "the means are those before centring: {means} {means_of_centred}"
        );
    }
}
