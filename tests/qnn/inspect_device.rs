//! `kiln inspect` on context binaries and DLCs.

use std::path::Path;
use std::process::{Command, Output};

use kiln::qnn::{
    Backend, Context, DataType, DeviceGraph, Encoding, GraphOptions, HtpGraph, Node, Soc, System,
    Tensor, TensorKind,
};

fn inspect(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command
        .current_dir(folder)
        .env_remove("KILN_QNN")
        .arg("inspect")
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_missing_library_shows_the_install_command() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("model.bin"),
        [0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0],
    )
    .unwrap();
    std::fs::write(folder.path().join("model.dlc"), b"PK\x03\x04").unwrap();
    for file in ["model.bin", "model.dlc"] {
        let output = inspect(folder.path(), &[file]);
        assert_eq!(output.status.code(), Some(4));
        assert!(
            text(&output.stderr)
                .contains("pip install --no-deps --target qnn onnxruntime-qnn==2.7.0")
        );
    }
    assert!(
        !folder.path().join("cache").exists(),
        "inspect creates no cache"
    );
}

/// y = x + x
fn sum() -> DeviceGraph {
    let mut graph = DeviceGraph {
        name: "sum".into(),
        ..Default::default()
    };
    let [x, y] = [("x", TensorKind::Input), ("y", TensorKind::Output)].map(|(name, kind)| {
        let (data_type, encoding) = (DataType::Float16, Encoding::None);
        graph.add(Tensor {
            name: name.into(),
            kind,
            data_type,
            dims: vec![1, 8],
            encoding,
            note: String::new(),
        })
    });
    let op = "ElementWiseAdd";
    graph.nodes.push(Node {
        name: "add".into(),
        op,
        params: vec![],
        inputs: vec![x, x],
        outputs: vec![y],
    });
    graph
}

#[test]
#[ignore = "needs the QNN libraries"]
fn graphs_and_tensors_are_listed() {
    let _alone = crate::alone();
    let libraries = crate::support::tools::qnn();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let ir = Context::new(&Backend::ir(&libraries).unwrap(), false).unwrap();
    ir.build(&sum(), &GraphOptions::ir(&at("graph.dlc")).unwrap())
        .unwrap();
    let htp = Context::new(
        &Backend::htp(&libraries, Soc::named("sm8550").unwrap()).unwrap(),
        false,
    )
    .unwrap();
    htp.build(&sum(), &GraphOptions::Htp(HtpGraph::default()))
        .unwrap();
    std::fs::write(at("model.bin"), htp.binary().unwrap()).unwrap();
    std::fs::write(
        at("model.dlc"),
        System::open(&libraries).unwrap().wrap(&htp).unwrap(),
    )
    .unwrap();
    let libraries = libraries.to_str().unwrap();

    let tensors = "\n  in  x  f16 [1, 8]\n  out y  f16 [1, 8]\n";
    for (file, begins, chip) in [
        ("model.bin", "context binary, ", true),
        ("model.dlc", "DLC, ", true),
        ("graph.dlc", "DLC, ", false),
    ] {
        let output = inspect(folder.path(), &[file, "--qnn", libraries]);
        let output_text = text(&output.stdout);
        assert!(
            output_text.starts_with(begins) && output_text.ends_with(tensors),
            "{output_text}{}",
            text(&output.stderr)
        );
        for line in [
            "compiled for sm8550 (v73) by QNN v2.51.0",
            "graph sum\n  VTCM 8 MiB, buffer for spill and fill 0 B\n  in ",
        ] {
            assert_eq!(output_text.contains(line), chip, "{output_text}");
        }
    }
    // The libraries are also found in a cache.
    let cache = crate::support::tools::cache();
    let from_cache = inspect(
        folder.path(),
        &["model.bin", "--cache", cache.to_str().unwrap()],
    );
    assert!(
        text(&from_cache.stdout).ends_with(tensors),
        "{}",
        text(&from_cache.stderr)
    );

    let output = inspect(folder.path(), &["model.bin", "--json", "--qnn", libraries]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json["binaries"][0]["graphs"][0]["inputs"][0]["shape"],
        serde_json::json!([1, 8])
    );
    assert_eq!(
        json["memory"]["sum"],
        serde_json::json!({"vtcm_bytes": 8 << 20, "spill_fill_bytes": 0})
    );

    std::fs::write(
        at("cut.bin"),
        &std::fs::read(at("model.bin")).unwrap()[..200],
    )
    .unwrap();
    std::fs::write(
        at("cut.dlc"),
        &std::fs::read(at("model.dlc")).unwrap()[..200],
    )
    .unwrap();
    for file in ["cut.bin", "cut.dlc"] {
        let output = inspect(folder.path(), &[file, "--qnn", libraries]);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{file}: {}",
            text(&output.stderr)
        );
    }
}
