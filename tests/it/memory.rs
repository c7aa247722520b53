//! Memory of the stages that process one tensor at a time, with a model that is larger than the
//! budget. Each order runs in its own process, whose peak memory (including mapped files) is
//! measured. The stages that need a complete model are tested in `memory_of_models.rs`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::support::quantize::Quant;
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use kiln::action::Manifest;
use serde_json::{Value, json};

/// The limit in docs/artifacts.md.
const BUDGET_BYTES: u64 = 64 << 20;

fn large(matrices: Quant) -> Vec<u8> {
    let bytes = TinyGguf::qwen2()
        .layers(1)
        .widths(2048, 16384)
        .matrices(matrices)
        .write();
    assert!(
        bytes.len() as u64 > 3 * BUDGET_BYTES / 2,
        "a model of {} bytes is too small",
        bytes.len()
    );
    bytes
}

/// Runs stages and checks that each stays below the budget.
struct BudgetRunner(StageRunner);

impl BudgetRunner {
    fn new(home: &Path) -> Self {
        BudgetRunner(StageRunner::new(home))
    }

    #[track_caller]
    fn run(&self, kind: &str, params: Value, slots: &[(&str, &Manifest)]) -> Manifest {
        let (manifest, peak) = self.0.measure(kind, params.clone(), slots);
        println!("{kind} {params}: {peak} bytes at most");
        assert!(
            peak < BUDGET_BYTES,
            "{kind} {params} takes {peak} bytes, the budget is {BUDGET_BYTES}"
        );
        manifest
    }
}

#[test]
fn per_tensor_stages_stay_below_the_budget() {
    let home = tempfile::tempdir().unwrap();
    let runner = BudgetRunner::new(home.path());
    let file = runner.0.file(&large(Quant::Q8_0));
    let model = runner.run("inspect", json!({}), &[("gguf", &file)]);
    runner.run("dequant", json!({ "type": "f16" }), &[("model", &model)]);
    let rounded = runner.run(
        "requant",
        json!({ "scheme": "int8-block" }),
        &[("tensors", &model)],
    );
    let weights = runner.run("requant", json!({}), &[("tensors", &model)]);
    runner.run(
        "graph",
        json!({ "prefill": 8, "context": 24 }),
        &[("model", &model), ("weights", &weights)],
    );
    // Copied blocks, and converted values.
    runner.run(
        "export-gguf",
        json!({}),
        &[("model", &model), ("weights", &weights)],
    );
    runner.run(
        "export-gguf",
        json!({ "type": "f16" }),
        &[("model", &model), ("weights", &rounded)],
    );
}

#[test]
fn copied_values_do_not_stay_in_memory() {
    let home = tempfile::tempdir().unwrap();
    let runner = BudgetRunner::new(home.path());
    let model = runner.run(
        "inspect",
        json!({}),
        &[("gguf", &runner.0.file(&large(Quant::F16)))],
    );
    runner.run("dequant", json!({ "type": "f16" }), &[("model", &model)]);
    runner.run("requant", json!({}), &[("tensors", &model)]);
}

/// The build process itself: it fetches, runs stages on its threads, writes and hashes artifacts.
#[test]
fn a_build_needs_no_more_memory_than_its_stages() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("model.gguf"), large(Quant::F16)).unwrap();
    let plan = r#"
        [plan]
        name = "large"
        [stage]
        source = { kind = "fetch", url = "file:model.gguf", tracked = true }
        model = { kind = "inspect", gguf = "source", keep = true }
        plain = { kind = "dequant", model = "model", type = "bf16", keep = true }
        weights = { kind = "requant", tensors = "model", keep = true }
    "#;
    fs::write(home.path().join("large.toml"), plan).unwrap();
    let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
    kiln.current_dir(home.path()).args([
        "build",
        "--json",
        "--jobs",
        "2",
        "--cache",
        "cache",
        "large.toml",
    ]);
    let mut child = kiln.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        // A process that has ended has no status; the last value before is its peak.
        let text = fs::read_to_string(&status).unwrap_or_default();
        if let Some((_, rest)) = text.split_once("VmHWM:") {
            let (kilobytes, _) = rest.trim().split_once(' ').unwrap();
            peak = kilobytes.parse::<u64>().unwrap() << 10;
        }
        match child.try_wait().unwrap() {
            Some(ended) => break ended,
            None => sleep(Duration::from_millis(1)),
        }
    };
    println!("build: {peak} bytes at most");
    assert!(ended.success() && peak > 0);
    // Two stages run at the same time.
    assert!(peak < 2 * BUDGET_BYTES, "a build takes {peak} bytes");
}
