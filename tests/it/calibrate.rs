//! `calibrate` compared with numpy.

use std::fs;

use crate::support::peers::{python, stdout_of};
use crate::support::quantize::Quant;
use crate::support::stage_runner::{StageRunner, TEXT};
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Manifest, PartName};
use serde_json::{Value, json};

#[test]
#[ignore = "needs ONNX Runtime and a package index"]
fn calibration_matches_numpy_and_is_deterministic() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    // With biases and a tied head; the widths are not multiples of a tile.
    let (model, graph) = runner.model(
        &TinyGguf::qwen2().write(),
        "native",
        json!({"prefill": 12, "context": 20}),
    );
    let text = runner.file(TEXT.as_bytes());
    let slots = [("graph", &graph), ("model", &model), ("text", &text)];
    let calibrate = || {
        runner
            .run(
                "calibrate",
                json!({"windows": 3, "moments": ["blk.1.*"]}),
                &slots,
            )
            .unwrap()
    };
    let calibration = calibrate();
    assert_eq!(calibrate(), calibration);
    let moments: Vec<&str> = calibration.under("moments").map(|(name, _)| name).collect();
    assert_eq!(moments.len(), 7);
    let facts = |name: &str| calibration.part(name).unwrap().facts.value().clone();
    assert_eq!(facts("moments/blk.1.ffn_up.weight")["tokens"], 36);
    let same = |a: &str, b: &str| calibration.part(a).unwrap() == calibration.part(b).unwrap();
    assert!(
        same(
            "moments/blk.1.ffn_up.weight",
            "moments/blk.1.ffn_gate.weight"
        ),
        "one input, one blob"
    );

    let out = tempfile::tempdir().unwrap();
    runner.write_to(&graph, out.path());
    runner.write_to(&calibration, &out.path().join("calibration"));
    let reference = json!({"windows": 3, "tokens": 12});
    let reference = runner
        .run(
            "reference",
            reference,
            &[("model", &model), ("text", &text)],
        )
        .unwrap();
    let tokens = |window| {
        let bytes = runner.bytes(&reference, &format!("window-00{window}/tokens.json"));
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    let windows: Vec<Value> = (0..3).map(tokens).collect();
    let facts = json!({"model": model.part("model.json").unwrap().facts, "windows": windows});
    fs::write(out.path().join("facts.json"), facts.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peers/calibrate.py");
    println!("{}", stdout_of(python().arg(script).arg(out.path())));
}

/// A calibration has the ranges that a graph over shifted blocks needs, also if its own graph does
/// not compute the sums.
#[test]
#[ignore = "needs ONNX Runtime"]
fn sums_of_blocks_are_calibrated_with_any_graph() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let model = TinyGguf::llama().matrices(Quant::Q4_0).shifted();
    let model = runner.inspect(&model.write());
    let text = runner.file(TEXT.as_bytes());
    let size = json!({"prefill": 12, "context": 20});
    let mut calibrations = vec![];
    let mut weights = Manifest::default();
    for scheme in ["native", "lpbq-32-shifted"] {
        let layers = json!({"override": [{"match": "blk.*", "scheme": scheme}]});
        weights = runner
            .run("requant", layers, &[("tensors", &model)])
            .unwrap();
        let slots = [("model", &model), ("weights", &weights)];
        let graph = runner.run("graph", size.clone(), &slots).unwrap();
        let slots = [("graph", &graph), ("model", &model), ("text", &text)];
        let params = json!({"windows": 3, "moments": ["blk.1.*"]});
        calibrations.push(runner.run("calibrate", params, &slots).unwrap());
    }
    let [without, with] = calibrations.as_slice() else {
        panic!()
    };
    let moments = |calibration: &Manifest| -> Vec<String> {
        let parts = calibration.under("moments");
        parts.map(|(name, _)| name.to_string()).collect()
    };
    assert_eq!(moments(without).len(), 7);
    assert_eq!(moments(without), moments(with));
    let ranges = |calibration| runner.json(calibration, "activations.json");
    let (without_sums, with_sums) = (ranges(without), ranges(with));
    for name in ["attn_norm", "mix.joined", "ffn_norm", "gate_up"] {
        let name = format!("blk.1.{name}.sums");
        for bound in ["min", "max"] {
            let [a, b] = [&without_sums, &with_sums].map(|all| all[&name][bound].as_f64().unwrap());
            assert!((a - b).abs() <= 1e-4 * a.abs(), "{name} {bound}: {a} {b}");
        }
    }

    let mut params = size;
    params["activations"] = json!("u16");
    params["kv"] = json!("u16");
    let graph = |calibration: &Manifest| {
        let slots = [
            ("model", &model),
            ("weights", &weights),
            ("calibration", calibration),
        ];
        runner.run("graph", params.clone(), &slots)
    };
    graph(without).unwrap();
    let mut older = without_sums;
    let values = older.as_object_mut().unwrap();
    values.retain(|name, _| !name.ends_with(".sums"));
    let name = PartName::new("activations.json").unwrap();
    let mut calibration = without.clone();
    let part = runner.part(older.to_string().as_bytes(), Value::Null);
    calibration.parts.insert(name, part);
    let problem = graph(&calibration).unwrap_err();
    assert_eq!(
        problem.message,
        "the calibration lacks sums of blocks: blk.0.attn_norm.sums, blk.0.mix.joined.sums, \
         blk.0.ffn_norm.sums, blk.0.gate_up.sums"
    );
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn invalid_patterns_and_short_texts_are_reported() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let (model, graph) = runner.model(
        &TinyGguf::llama().write(),
        "native",
        json!({"prefill": 12, "context": 20}),
    );
    let check = |params: Value, text: &str, expected: &str| {
        let text = runner.file(text.as_bytes());
        let problem = runner
            .run(
                "calibrate",
                params,
                &[("graph", &graph), ("model", &model), ("text", &text)],
            )
            .unwrap_err();
        assert!(problem.message.contains(expected), "{problem}");
    };
    check(
        json!({"moments": ["blk.9.*"]}),
        TEXT,
        "the pattern `blk.9.*` matches no further matrix",
    );
    check(json!({}), "too short", "too few for 32 windows of 1");
}
