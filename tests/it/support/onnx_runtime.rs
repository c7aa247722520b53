//! Runs ONNX graphs in ONNX Runtime.

use std::fs;

use kiln::action::Manifest;
use serde_json::json;

use super::peers::{python, stdout_of};
use super::workspace::Folder;

/// Runs the graphs `onnx` in ONNX Runtime and compares them with a decoder in numpy, on `tokens`,
/// or on random tokens if there are none.
#[track_caller]
pub fn compare_with_numpy(folder: &Folder, onnx: &Manifest, tokens: &[u32], tolerance: f32) {
    let out = tempfile::tempdir().unwrap();
    let mut weights = serde_json::Map::new();
    for (name, part) in &onnx.parts {
        let path = out.path().join(name.as_str());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &*folder.bytes(part)).unwrap();
        if let Some(name) = name.as_str().strip_prefix("weights/") {
            weights.insert(name.into(), part.facts.value().clone());
        }
    }
    let model = &onnx.get("model.json").unwrap().facts;
    let facts = json!({"model": model, "weights": weights, "tokens": tokens});
    fs::write(out.path().join("facts.json"), facts.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peers/run_graphs.py");
    let mut command = python();
    command.arg(script).arg(out.path());
    println!("{}", stdout_of(command.arg(tolerance.to_string())));
}
