//! A DLC of ours, seen by Netron's own reader.
#![allow(missing_docs)]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const NETRON: &str = "netron==9.3.3";

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What Netron sees in the file `model`.
fn netron(model: &Path) -> Value {
    let folder = tempfile::tempdir().unwrap();
    said(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
            .arg(folder.path())
            .arg(NETRON),
    );
    // Node before 20.19 must be told that the package's files are ES modules.
    std::fs::write(folder.path().join("package.json"), r#"{"type": "module"}"#).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/netron/read.mjs");
    let text = said(Command::new("node").arg(script).arg(folder.path().join("netron")).arg(model));
    serde_json::from_str(&text).unwrap()
}

fn element_bytes(kind: &str) -> u64 {
    match kind {
        "int8" | "uint8" | "qint8" | "quint8" | "qint4" | "quint4" | "boolean" => 1,
        "int16" | "uint16" | "qint16" | "quint16" | "float16" => 2,
        "int32" | "uint32" | "qint32" | "quint32" | "float32" => 4,
        other => panic!("a tensor of type {other}"),
    }
}

/// `KILN_DLC=out/smollm2-135m/STAGE/prefill.dlc cargo test --test netron -- --ignored`; needs node and pip.
#[test]
#[ignore = "needs node, a package index and a DLC in KILN_DLC"]
fn netron_opens_the_dlc() {
    let path = std::env::var("KILN_DLC").expect("KILN_DLC names a DLC");
    let seen = netron(Path::new(&path));
    assert!(seen["format"].as_str().unwrap().starts_with("DLC"), "{}", seen["format"]);
    let [graph] = seen["graphs"].as_array().unwrap().as_slice() else { panic!("one graph") };
    let stem = Path::new(&path).file_stem().unwrap().to_str().unwrap();
    assert!(graph["name"].as_str().unwrap().starts_with(stem), "{}", graph["name"]);

    let tensors = graph["tensors"].as_array().unwrap();
    let named = |name: &str| tensors.iter().any(|tensor| tensor["name"].as_str().unwrap().contains(name));
    for name in ["input_ids", "attention_mask", "position_ids_cos", "past_key_0_in", "past_value_0_out", "logits"] {
        assert!(named(name), "no tensor {name}");
    }
    let weights: Vec<_> = tensors.iter().filter(|tensor| !tensor["bytes"].is_null()).collect();
    assert!(!weights.is_empty());
    for weight in weights {
        let count: u64 = weight["shape"].as_array().unwrap().iter().map(|length| length.as_u64().unwrap()).product();
        let expected = count * element_bytes(weight["type"].as_str().unwrap());
        assert_eq!(weight["bytes"].as_u64().unwrap(), expected, "{weight}");
    }
}
