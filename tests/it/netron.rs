//! A DLC of ours, seen by Netron's own reader.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::fetching::sha256;
use crate::support::peers::{self, node, said};
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools::{QNN, QNN_SHA256, cache};
use serde_json::Value;

/// What Netron sees in the file `model`.
fn netron(model: &Path) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/peers/netron.mjs");
    serde_json::from_str(&said(node().arg(script).arg(peers::netron()).arg(model))).unwrap()
}

/// The decode graph of a tiny model with weights in f16, as a build writes it.
fn tiny_dlc(home: &Path) -> PathBuf {
    std::fs::write(home.join("tiny.gguf"), TinyGguf::llama().write()).unwrap();
    let pin = sha256(&TinyGguf::llama().write());
    let plan = format!(
        r#"
        [plan]
        name = "tiny"
        [tools]
        qnn = {{ pypi = "{QNN}", sha256 = "{QNN_SHA256}" }}
        [stage]
        source = {{ kind = "fetch", url = "file:tiny.gguf", sha256 = "{pin}" }}
        model = {{ kind = "inspect", gguf = "source" }}
        weights = {{ kind = "requant", tensors = "model", scheme = "f16" }}
        graph = {{ kind = "graph", model = "model", weights = "weights", prefill = 6, context = 16 }}
        dlc = {{ kind = "dlc", graph = "graph" }}
        "#
    );
    std::fs::write(home.join("tiny.toml"), plan).unwrap();
    let kiln = env!("CARGO_BIN_EXE_kiln");
    said(
        Command::new(kiln)
            .args(["build", "tiny.toml", "--out", ".", "--cache"])
            .arg(cache())
            .current_dir(home),
    );
    home.join("dlc/decode.dlc")
}

/// Of another file: `KILN_DLC=out/smollm2-135m/dlc-f16/decode.dlc cargo test --test it netron:: --
/// --ignored`.
#[test]
#[ignore = "needs the QNN libraries and a package index"]
fn netron_opens_the_dlc() {
    let home = tempfile::tempdir().unwrap();
    let path = std::env::var_os("KILN_DLC").map_or_else(|| tiny_dlc(home.path()), PathBuf::from);
    let seen = netron(&path);
    assert_eq!(seen["format"], "DLC");
    let [graph] = seen["graphs"].as_array().unwrap().as_slice() else {
        panic!("one graph")
    };
    assert!(
        graph["name"].as_str().unwrap().starts_with("token_ar1_cl"),
        "{}",
        graph["name"]
    );
    assert!(graph["nodes"].as_array().unwrap().len() > 50);

    let tensors = graph["tensors"].as_array().unwrap();
    let tensor = |name: &str| tensors.iter().find(|tensor| tensor["name"] == name);
    let io = [
        "attention_mask",
        "position_ids_cos",
        "past_key_0_in",
        "past_value_0_out",
        "logits",
    ];
    for (name, kind) in io
        .map(|name| (name, "float16"))
        .into_iter()
        .chain([("input_ids", "int32")])
    {
        let tensor = tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(tensor["type"], kind, "{name}");
        assert!(tensor["bytes"].is_null(), "{name} is no weight");
    }
    // The bytes of weights lie in an entry of the DLC that Netron 9.3.3 does not look into.
    let weights: Vec<_> = tensors
        .iter()
        .filter(|tensor| !tensor["bytes"].is_null())
        .collect();
    assert!(weights.len() > 10, "{}", weights.len());
    for weight in weights {
        assert!(
            weight["type"].is_string() && !weight["shape"].as_array().unwrap().is_empty(),
            "{weight}"
        );
    }
}
