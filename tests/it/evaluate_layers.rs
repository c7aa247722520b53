//! Some layers on the simulator, from the middle of a model: what they are held against, and that a
//! wrong one shows.

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use kiln::base::Code;
use kiln::stages;
use serde_json::{Value, json};

const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over the \
                    quick brown fox again";

fn by_layer() -> Value {
    json!({"prefill": 16, "context": 32, "shards": "layers"})
}

#[test]
fn a_sample_has_both_ends() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let model = road.inspect(&TinyGguf::llama().layers(7).write());
    let graph = road.graph(&model, "native", by_layer());
    let library = road.part(b"a library", Value::Null);
    let files =
        ["libQnnHtp.so", "libQnnSystem.so"].map(|name| (name.parse().unwrap(), library.clone()));
    let tool = Manifest {
        parts: files.into(),
    };
    let compiled = |sample: Option<u32>| -> Vec<String> {
        let registry = stages::all();
        let slots = [(
            "graph".to_string(),
            vec![("graph".to_string(), graph.clone())],
        )]
        .into();
        let tools = [("qnn".to_string(), tool.clone())].into();
        let inputs = kiln::action::Inputs {
            slots,
            tools,
            ..Default::default()
        };
        let params = json!({"soc": "sm8650", "sample": sample});
        let orders = registry
            .get("context-bin")
            .unwrap()
            .expand(&params, &inputs)
            .unwrap();
        orders
            .into_iter()
            .map(|order| order.name)
            .filter(|name| name.contains("-of-"))
            .collect()
    };
    assert_eq!(compiled(Some(1)), ["1-of-7"]);
    assert_eq!(compiled(Some(2)), ["1-of-7", "7-of-7"]);
    assert_eq!(compiled(Some(3)), ["1-of-7", "4-of-7", "7-of-7"]);
    assert_eq!(compiled(Some(9)).len(), 7);
    assert_eq!(compiled(None).len(), 7);
}

#[test]
#[ignore = "needs the QNN libraries and ONNX Runtime"]
fn a_layer_that_computes_something_else_is_missed() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path())
        .tool("qnn", &tools::qnn())
        .tool("ort", &tools::onnxruntime());
    let model = road.inspect(&TinyGguf::qwen2().layers(4).write());
    let text = road.file(TEXT.as_bytes());
    let reference = json!({"windows": 1, "tokens": 12});
    let reference = road
        .run(
            "reference",
            reference,
            &[("model", &model), ("text", &text)],
        )
        .unwrap();
    let graph = road.graph(&model, "native", by_layer());
    let score = road
        .run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("graph", &graph)],
        )
        .unwrap();
    let context = |graph: &Manifest| {
        let params =
            json!({"soc": "sm8650", "weight_sharing": false, "graphs": ["prefill"], "sample": 3});
        road.run("context-bin", params, &[("graph", graph)])
            .unwrap()
    };
    let validated = |context: &Manifest| {
        let slots = [
            ("reference", &reference),
            ("graph", &graph),
            ("context", context),
        ];
        let layers = road.run("evaluate-layers", json!({}), &slots).unwrap();
        let params = json!({"limits": {"layer-evaluation": {"sqnr_db": 50}}});
        road.run(
            "validate",
            params,
            &[("evaluation", &score), ("layer-evaluation", &layers)],
        )
    };
    let own = context(&graph);
    let report = validated(&own).unwrap();
    let text = String::from_utf8(road.bytes(&report, "report.txt")).unwrap();
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

    let problem = validated(&context(&road.graph(&model, "int4-channel", by_layer()))).unwrap_err();
    assert_eq!(problem.code, Code::ValidateMissed);
    assert!(
        problem
            .message
            .contains("MISSED layer-evaluation SQNR of the worst value in dB"),
        "{problem}"
    );

    // A sample is no model, and the layers of another graph are not these.
    let problem = road
        .run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("context", &own)],
        )
        .unwrap_err();
    assert!(problem.help.unwrap().contains("`sample`"));
    let other = road.graph(
        &model,
        "native",
        json!({"prefill": 16, "context": 48, "shards": "layers"}),
    );
    let slots = [
        ("reference", &reference),
        ("graph", &other),
        ("context", &own),
    ];
    assert_eq!(
        road.run("evaluate-layers", json!({}), &slots)
            .unwrap_err()
            .code,
        Code::EvaluateLayersOther
    );
}
