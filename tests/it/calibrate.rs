//! `calibrate` against numpy, and against itself.

use std::fs;

use crate::support::peers::{python, said};
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use serde_json::{Value, json};

const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over the \
                    quick brown fox again";

fn write(road: &StageRunner, manifest: &Manifest, folder: &std::path::Path) {
    for name in manifest.parts.keys() {
        let path = folder.join(name.as_str());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, road.bytes(manifest, name.as_str())).unwrap();
    }
}

#[test]
#[ignore = "needs ONNX Runtime and a package index"]
fn figures_are_numpys_and_the_same_twice() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    // Biases, tied head; the widths are no multiples of a tile.
    let (model, graph) = road.model(
        &TinyGguf::qwen2().write(),
        "native",
        json!({"prefill": 12, "context": 20}),
    );
    let text = road.file(TEXT.as_bytes());
    let slots = [("graph", &graph), ("model", &model), ("text", &text)];
    let calibrate = || {
        road.run(
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
    write(&road, &graph, out.path());
    write(&road, &calibration, &out.path().join("calibration"));
    let reference = json!({"windows": 3, "tokens": 12});
    let reference = road
        .run(
            "reference",
            reference,
            &[("model", &model), ("text", &text)],
        )
        .unwrap();
    let tokens = |window| {
        let bytes = road.bytes(&reference, &format!("window-00{window}/tokens.json"));
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    let windows: Vec<Value> = (0..3).map(tokens).collect();
    let facts = json!({"model": model.part("model.json").unwrap().facts, "windows": windows});
    fs::write(out.path().join("facts.json"), facts.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peers/calibrate.py");
    println!("{}", said(python().arg(script).arg(out.path())));
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn what_cannot_be_calibrated_is_said() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let (model, graph) = road.model(
        &TinyGguf::llama().write(),
        "native",
        json!({"prefill": 12, "context": 20}),
    );
    let check = |params: Value, text: &str, expected: &str| {
        let text = road.file(text.as_bytes());
        let problem = road
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
