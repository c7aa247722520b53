//! The releases of QNN that kiln works with, each as an SDK.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::fetching::sha256;
use crate::support::stage_runner::{StageRunner, TEXT};
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;

/// A tiny model in libGenie and on the simulator.
const PLAN: &str = r#"
[plan]
name = "tiny"
[vars]
gguf = ""
text = ""
[tools]
qnn = { sdk = "${QNN_SDK_ROOT}" }
[stage.source]
kind = "fetch"
url = "file:tiny.gguf"
sha256 = "${gguf}"
[stage.model]
kind = "inspect"
gguf = "source"
[stage.weights]
kind = "requant"
tensors = "model"
[stage.graph]
kind = "graph"
model = "model"
weights = "weights"
prefill = 16
context = 256
[stage.npu]
kind = "context-bin"
graph = "graph"
soc = "sm8650"
weight_sharing = false
[stage.bundle]
kind = "package"
model = "model"
context = "npu"
[stage.text]
kind = "fetch"
url = "file:text.txt"
sha256 = "${text}"
[stage.reference]
kind = "reference"
model = "model"
text = "text"
windows = 1
tokens = 8
context = 256
prompt = "<|im_start|>the dog and the fox\n is é"
greedy = 6
[stage.answer]
kind = "generate"
bundle = "bundle"
reference = "reference"
[stage.htp]
kind = "evaluate"
reference = "reference"
context = "npu"
[stage.report]
kind = "validate"
inputs = ["htp", "answer"]
limits = { htp = { kld = 1e-4 }, answer = { greedy = 6 } }
"#;

/// Links the files of `from` into a new folder `to`.
fn link_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        symlink(
            entry.path().canonicalize().unwrap(),
            to.join(entry.file_name()),
        )
        .unwrap();
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn each_release_builds_and_runs_a_model() {
    let home = tempfile::tempdir().unwrap();
    let gguf = TinyGguf::qwen2().seed(60).write();
    fs::write(home.path().join("plan.toml"), PLAN).unwrap();
    fs::write(home.path().join("tiny.gguf"), &gguf).unwrap();
    fs::write(home.path().join("text.txt"), TEXT).unwrap();
    let mut releases = tools::older_qnn().to_vec();
    releases.push(tools::qnn());
    for (index, libraries) in releases.iter().enumerate() {
        let sdk = home.path().join(format!("sdk-{index}"));
        link_all(libraries, &sdk.join("lib/x86_64-linux-clang"));
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.current_dir(home.path()).env("QNN_SDK_ROOT", &sdk);
        kiln.args(["build", "plan.toml", "--set"]);
        kiln.arg(format!("gguf={}", sha256(&gguf)));
        kiln.args(["--set", &format!("text={}", sha256(TEXT.as_bytes()))]);
        let output = kiln.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", libraries.display());
        println!("{errors}");
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn a_newer_release_loads_the_binary_of_an_older_one() {
    let home = tempfile::tempdir().unwrap();
    let [oldest, ..] = tools::older_qnn();
    let runner = StageRunner::new(home.path()).tool("qnn", &oldest);
    let params = json!({"prefill": 12, "context": 20});
    let (model, graph) = runner.model(&TinyGguf::qwen2().write(), "native", params);
    let params = json!({"soc": "sm8650", "weight_sharing": false});
    let context = runner
        .run("context-bin", params, &[("graph", &graph)])
        .unwrap();
    let build_id = runner.json(&context, "info.json")["build_id"].clone();
    assert!(
        build_id.as_str().unwrap().starts_with("v2.47."),
        "{build_id}"
    );
    let reference = runner.reference(&model, json!({"windows": 1, "tokens": 8}));

    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let score = runner.evaluate(&reference, "context", &context);
    let report = runner
        .run("validate", json!({}), &[("evaluation", &score)])
        .unwrap();
    let report = runner.json(&report, "report.json");
    let kld = report["candidates"]["evaluation"]["fidelity"]["kld"]
        .as_f64()
        .unwrap();
    assert!(kld < 1e-4, "{kld}");
}

/// Older releases lack functions, and one makes binaries of DLCs that do not run.
#[test]
#[ignore = "needs the QNN libraries"]
fn what_a_release_cannot_do_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let messages = [
        "this release of QNN does not have systemDlcGetComposableGraphInfoHandles",
        "this release of QNN does not have systemDlcGetComposableGraphInfoHandles",
        "",
        "QNN 2.50 does not compile DLCs right",
    ];
    for (libraries, message) in tools::older_qnn().iter().zip(messages) {
        let runner = StageRunner::new(home.path()).tool("qnn", libraries);
        let params = json!({"prefill": 12, "context": 20});
        let (_, graph) = runner.model(&TinyGguf::qwen2().write(), "f16", params);
        let params = json!({"soc": "sm8650", "weight_sharing": false});
        let result = runner.run("dlc", json!({}), &[("graph", &graph)]);
        let result = result.and_then(|dlc| runner.run("context-bin", params, &[("dlc", &dlc)]));
        match result {
            Ok(_) => assert_eq!(message, "", "{}", libraries.display()),
            Err(problem) => assert_eq!(problem.message, message),
        }
    }
}
