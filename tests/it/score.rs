//! `score` and `validate` on ONNX graphs in ONNX Runtime.

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use serde_json::{Value, json};

const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over the \
                    quick brown fox again";

/// Reference and score of a tiny model, and the report or the message that a limit is missed.
fn tiny(spoil: impl Fn(&StageRunner, &mut Manifest)) -> std::result::Result<Value, String> {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let (model, mut graph) = road.model(
        &TinyGguf::llama().write(),
        "native",
        json!({"prefill": 16, "context": 32}),
    );
    let params = json!({"windows": 3, "tokens": 12, "prompt": "the dog", "greedy": 5});
    let reference = road
        .run(
            "reference",
            params,
            &[("model", &model), ("text", &road.file(TEXT.as_bytes()))],
        )
        .unwrap();
    spoil(&road, &mut graph);
    let score = road
        .run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("graph", &graph)],
        )
        .unwrap();
    let limits = json!({"limits": {"evaluation": {"ppl_ratio": 1e-4, "kld": 1e-6, "same_top": 0.99, "greedy": 5}}});
    let report = road
        .run("validate", limits, &[("evaluation", &score)])
        .map_err(|problem| problem.message)?;
    println!(
        "{}",
        String::from_utf8_lossy(&road.bytes(&report, "report.txt"))
    );
    Ok(serde_json::from_slice(&road.bytes(&report, "report.json")).unwrap())
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn a_true_graph_keeps_every_limit() {
    let report = tiny(|_, _| ()).unwrap();
    let candidate = &report["candidates"]["evaluation"];
    assert_eq!(candidate["fidelity"]["tokens"], 33);
    assert_eq!(candidate["greedy"]["decoded"].as_array().unwrap().len(), 2);
    let kinds: Vec<&String> = candidate["ranges"].as_object().unwrap().keys().collect();
    assert_eq!(kinds, ["down", "gate_up", "key", "residual", "scores"]);
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn one_flipped_scale_sign_is_caught() {
    let flip = |bytes: &mut Vec<u8>| bytes[1] ^= 0x80;
    let message =
        tiny(|road, graph| road.spoil(graph, "weights/blk.1.ffn_down.weight/scales", flip))
            .unwrap_err();
    assert!(
        message.contains("MISSED evaluation       mean KL divergence"),
        "{message}"
    );
}

/// SmolLM2 has 13 on the first windows of the text.
const PERPLEXITY: f64 = 16.0;

/// SmolLM2-135M-Instruct Q4_1 on 8 windows of 128 tokens; best with `--release`.
#[test]
#[ignore = "needs ONNX Runtime and a real model; takes minutes"]
fn a_real_model_and_one_flipped_scale_sign() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let (model, mut graph) = road.model(
        &std::fs::read(tools::smollm2()).unwrap(),
        "native",
        json!({}),
    );
    let text = road.file(include_bytes!("../../plans/data/eval.txt"));
    let prompt =
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let reference = road
        .run(
            "reference",
            json!({"prompt": prompt}),
            &[("model", &model), ("text", &text)],
        )
        .unwrap();
    // Both are f32 over the same weights: the mean KL divergence is 2e-11. Of 24 flips at random
    // places the least shows as 1e-6, most as more than 1e-4.
    let limits = json!({"ppl_ratio": 1e-5, "kld": 1e-7, "same_top": 1.0, "greedy": 16, "perplexity": PERPLEXITY});
    let limits = json!({"limits": {"evaluation": limits}});
    let validate = |graph: &Manifest, params| {
        let score = road
            .run(
                "evaluate",
                params,
                &[("reference", &reference), ("graph", graph)],
            )
            .unwrap();
        road.run("validate", limits.clone(), &[("evaluation", &score)])
    };
    let report = validate(&graph, json!({})).unwrap();
    println!(
        "{}",
        String::from_utf8_lossy(&road.bytes(&report, "report.txt"))
    );

    road.spoil(
        &mut graph,
        "weights/blk.15.ffn_down.weight/scales",
        |bytes| bytes[1] ^= 0x80,
    );
    let problem = validate(&graph, json!({"windows": 2})).unwrap_err();
    println!("one flipped scale sign:\n{}", problem.message);
    assert!(
        problem
            .message
            .contains("MISSED evaluation       mean KL divergence"),
        "{problem}"
    );
}

/// A model whose query and key rows are taken for what they are not: turned in the wrong pairs.
#[test]
#[ignore = "needs ONNX Runtime and a real model"]
fn the_wrong_rope_is_caught() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let mut model = road.inspect(&std::fs::read(tools::smollm2()).unwrap());
    let facts = &mut model.parts.get_mut("model.json").unwrap().facts;
    let mut wrong = facts.value().clone();
    assert_eq!(wrong["rope_rows"].take(), "interleaved");
    wrong["rope_rows"] = json!("half-split");
    *facts = wrong.into();
    let graph = road.graph(&model, "native", json!({}));
    let text = road.file(include_bytes!("../../plans/data/eval.txt"));
    let reference = road
        .run(
            "reference",
            json!({"windows": 1}),
            &[("model", &model), ("text", &text)],
        )
        .unwrap();
    let score = road
        .run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("graph", &graph)],
        )
        .unwrap();
    // Reference and candidate agree: only the model's own perplexity tells.
    let limits = json!({"limits": {"evaluation": {"perplexity": PERPLEXITY, "ppl_ratio": 1e-5, "kld": 1e-7}}});
    let problem = road
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

/// What `validate` says of the graph of `params` over `model`, or the message that a limit is
/// missed.
fn judged(
    road: &StageRunner,
    model: &Manifest,
    graph: &Manifest,
) -> std::result::Result<(), String> {
    let params = json!({"windows": 3, "tokens": 12, "prompt": "the dog", "greedy": 5});
    let reference = road
        .run(
            "reference",
            params,
            &[("model", model), ("text", &road.file(TEXT.as_bytes()))],
        )
        .unwrap();
    let score = road
        .run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("graph", graph)],
        )
        .unwrap();
    let limits = json!({"limits": {"evaluation": {"ppl_ratio": 1e-4, "kld": 1e-6, "same_top": 0.99, "greedy": 5}}});
    road.run("validate", limits, &[("evaluation", &score)])
        .map(drop)
        .map_err(|problem| problem.message)
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn large_key_biases_are_hidden_by_no_mask_unless_keys_are_centred() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let model = road.inspect(&TinyGguf::qwen2().large_biases().write());
    let judged = |centre: &str| {
        let params = json!({"prefill": 16, "context": 32, "key_centre": centre});
        judged(&road, &model, &road.graph(&model, "native", params))
    };
    assert_eq!(judged("bias"), Ok(()));
    let message = judged("none").unwrap_err();
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
fn keys_centred_by_a_calibration_change_nothing() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    for gguf in [TinyGguf::llama(), TinyGguf::qwen2().large_biases()] {
        let (model, graph) = road.model(
            &gguf.write(),
            "native",
            json!({"prefill": 16, "context": 32}),
        );
        let text = road.file(TEXT.as_bytes());
        let calibrate = |graph: &Manifest| {
            let slots = [("graph", graph), ("model", &model), ("text", &text)];
            let calibration = road
                .run("calibrate", json!({"windows": 2}), &slots)
                .unwrap();
            let means: Value =
                serde_json::from_slice(&road.bytes(&calibration, "key_means.json")).unwrap();
            (calibration, means)
        };
        let (calibration, means) = calibrate(&graph);
        let weights = road
            .run("requant", json!({}), &[("tensors", &model)])
            .unwrap();
        let params = json!({"prefill": 16, "context": 32, "key_centre": "calibration"});
        let slots = [
            ("model", &model),
            ("weights", &weights),
            ("calibration", &calibration),
        ];
        let centred = road.run("graph", params, &slots).unwrap();
        assert_eq!(judged(&road, &model, &centred), Ok(()));
        let (_, again) = calibrate(&centred);
        let first = |means: &Value| means["0"][3].as_f64().unwrap();
        assert!(
            (first(&means) - first(&again)).abs() < 1e-3,
            "of the keys as they were: {means} {again}"
        );
    }
}
