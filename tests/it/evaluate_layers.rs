//! `evaluate-layers`: a sample of layers on the simulator, compared with ONNX Runtime.

use crate::support::stage_runner::{StageRunner, TEXT};
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use kiln::base::Code;
use serde_json::{Value, json};

fn by_layer() -> Value {
    json!({"prefill": 16, "context": 32, "shards": "layers"})
}

#[test]
fn a_sample_selects_evenly_spaced_layers() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().layers(7).write());
    let graph = runner.graph(&model, "native", by_layer());
    let compiled = |sample: Option<u32>| -> Vec<String> {
        let params = json!({"soc": "sm8650", "sample": sample});
        let orders = runner.context_orders(&graph, &params);
        let mut names: Vec<String> = orders.into_iter().map(|order| order.name).collect();
        names.retain(|name| name.contains("-of-"));
        names
    };
    assert_eq!(compiled(Some(1)), ["1-of-7"]);
    assert_eq!(compiled(Some(2)), ["1-of-7", "7-of-7"]);
    assert_eq!(compiled(Some(3)), ["1-of-7", "4-of-7", "7-of-7"]);
    assert_eq!(compiled(Some(9)).len(), 7);
    assert_eq!(compiled(None).len(), 7);
}

#[test]
#[ignore = "needs the QNN libraries and ONNX Runtime"]
fn a_wrong_layer_fails_validation() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path())
        .tool("qnn", &tools::qnn())
        .tool("ort", &tools::onnxruntime());
    let model = runner.inspect(&TinyGguf::qwen2().layers(4).write());
    let text = runner.file(TEXT.as_bytes());
    let reference = json!({"windows": 1, "tokens": 12});
    let reference = runner
        .run(
            "reference",
            reference,
            &[("model", &model), ("text", &text)],
        )
        .unwrap();
    let graph = runner.graph(&model, "native", by_layer());
    let score = runner.evaluate(&reference, "graph", &graph);
    let context = |graph: &Manifest| {
        let params =
            json!({"soc": "sm8650", "weight_sharing": false, "graphs": ["prefill"], "sample": 3});
        runner
            .run("context-bin", params, &[("graph", graph)])
            .unwrap()
    };
    let validated = |context: &Manifest| {
        let slots = [
            ("reference", &reference),
            ("graph", &graph),
            ("context", context),
        ];
        let layers = runner.run("evaluate-layers", json!({}), &slots).unwrap();
        let params = json!({"limits": {"layer-evaluation": {"sqnr_db": 50}}});
        runner.run(
            "validate",
            params,
            &[("evaluation", &score), ("layer-evaluation", &layers)],
        )
    };
    let sample = context(&graph);
    let report = validated(&sample).unwrap();
    let text = runner.text(&report, "report.txt");
    println!("{text}");
    for value in [
        "layer 0 ",
        "layer 1 ",
        "layer 3 ",
        "blk.0.residual",
        "past_key_1_out",
        "logits",
    ] {
        assert!(text.contains(value), "{value} in {text}");
    }
    assert!(!text.contains("layer 2 "), "{text}");

    let problem =
        validated(&context(&runner.graph(&model, "int4-channel", by_layer()))).unwrap_err();
    assert_eq!(problem.code, Code::ValidateMissed);
    assert!(
        problem
            .message
            .contains("MISSED layer-evaluation SQNR of the worst value in dB"),
        "{problem}"
    );

    // A sample is not a complete model, and the graph must be the one that was compiled.
    let problem = runner
        .run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("context", &sample)],
        )
        .unwrap_err();
    assert!(problem.help.unwrap().contains("`sample`"));
    let other = runner.graph(
        &model,
        "native",
        json!({"prefill": 16, "context": 48, "shards": "layers"}),
    );
    let slots = [
        ("reference", &reference),
        ("graph", &other),
        ("context", &sample),
    ];
    assert_eq!(
        runner
            .run("evaluate-layers", json!({}), &slots)
            .unwrap_err()
            .code,
        Code::EvaluateLayersOther
    );
}
