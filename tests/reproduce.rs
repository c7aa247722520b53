//! The same plan gives the same bytes: DeepSeek's own plan over a tiny model of its architecture, to the very end.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::fetching::sha256;
use support::peers::said;
use support::quantize::Quant;
use support::tiny_gguf::TinyGguf;
use support::tree::files;

/// What it takes to make the plan small.
const SMALL: [&str; 7] = ["prefill=16", "context=48", "shards=2", "windows=2", "tokens=16", "prompt=clay", "greedy=3"];

/// Builds in `folder`, which gets all that the build reads, and yields what was written, receipt and all.
fn build(folder: &Path, jobs: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let plans = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    fs::create_dir_all(folder.join("plans/data")).unwrap();
    for file in ["deepseek-qwen-1.5b.toml", "data/eval.txt"] {
        fs::copy(plans.join(file), folder.join("plans").join(file)).unwrap();
    }
    // Q4_0, Q4_1 and Q6_K, as the model itself has them.
    let model = TinyGguf::qwen2()
        .widths(256, 256)
        .tensor_type("output.weight", Quant::Q6_K)
        .tensor_type("blk.0.ffn_down.weight", Quant::Q4_1)
        .write();
    fs::write(folder.join("model.gguf"), &model).unwrap();
    let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
    kiln.current_dir(folder).args(["build", "plans/deepseek-qwen-1.5b.toml", "--jobs", jobs]);
    kiln.args(["--set", "source=file:model.gguf", "--set", &format!("sha256={}", sha256(&model))]);
    said(kiln.args(SMALL.iter().flat_map(|set| ["--set", set])));
    files(&folder.join("out/deepseek-qwen-1.5b"))
}

#[test]
#[ignore = "needs a package index"]
fn directory_and_threads_leave_no_trace() {
    let root = tempfile::tempdir().unwrap();
    let one = build(&root.path().join("one"), "1");
    let other = build(&root.path().join("another/and/deeper"), "2");
    for kept in [
        "bundle/deepseek-qwen-1.5b_part_2_of_2.bin",
        "container/2-of-2/model.dlc",
        "graph/decode.onnx",
        "report/report.json",
        "receipt.json",
    ] {
        assert!(one.contains_key(Path::new(kept)), "{kept}");
    }
    assert!(one.keys().eq(other.keys()));
    for (name, bytes) in &one {
        assert!(other[name] == *bytes, "{} differs", name.display());
    }
}
