//! Weights pass in little memory: a model larger than the budget goes through every stage that
//! takes it tensor by tensor, each order in a process of its own, whose peak (mapped files
//! included) is measured. What stages over a whole model take is in `memory_of_models.rs`.

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

/// What docs/artifacts.md promises.
const BUDGET_BYTES: u64 = 64 << 20;

fn large(matrices: Quant) -> Vec<u8> {
    let bytes = TinyGguf::qwen2()
        .layers(1)
        .widths(2048, 16384)
        .matrices(matrices)
        .write();
    assert!(
        bytes.len() as u64 > 3 * BUDGET_BYTES / 2,
        "a model of {} bytes proves nothing",
        bytes.len()
    );
    bytes
}

struct Frugal(StageRunner);

impl Frugal {
    fn new(home: &Path) -> Self {
        Frugal(StageRunner::new(home))
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
fn a_model_larger_than_the_budget_passes() {
    let home = tempfile::tempdir().unwrap();
    let road = Frugal::new(home.path());
    let file = road.0.file(&large(Quant::Q8_0));
    let model = road.run("inspect", json!({}), &[("gguf", &file)]);
    road.run("dequant", json!({ "type": "f16" }), &[("model", &model)]);
    let rounded = road.run(
        "requant",
        json!({ "scheme": "int8-block" }),
        &[("tensors", &model)],
    );
    let weights = road.run("requant", json!({}), &[("tensors", &model)]);
    road.run(
        "graph",
        json!({ "prefill": 8, "context": 24 }),
        &[("model", &model), ("weights", &weights)],
    );
    // Blocks as they lie in the file, and values written anew.
    road.run(
        "export-gguf",
        json!({}),
        &[("model", &model), ("weights", &weights)],
    );
    road.run(
        "export-gguf",
        json!({ "type": "f16" }),
        &[("model", &model), ("weights", &rounded)],
    );
}

#[test]
fn values_that_are_handed_on_as_they_lie_do_not_stay() {
    let home = tempfile::tempdir().unwrap();
    let road = Frugal::new(home.path());
    let model = road.run(
        "inspect",
        json!({}),
        &[("gguf", &road.0.file(&large(Quant::F16)))],
    );
    road.run("dequant", json!({ "type": "f16" }), &[("model", &model)]);
    road.run("requant", json!({}), &[("tensors", &model)]);
}

/// The build itself: what it fetches, runs on its own threads, writes out and hashes.
#[test]
fn a_build_takes_no_more_than_its_stages() {
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
        // Of a process that has ended nothing is known; its peak stood there a moment before.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.map_or(peak, |line| {
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
        });
        match child.try_wait().unwrap() {
            Some(ended) => break ended,
            None => sleep(Duration::from_millis(1)),
        }
    };
    println!("build: {peak} bytes at most");
    assert!(ended.success() && peak > 0);
    // Two stages at once.
    assert!(peak < 2 * BUDGET_BYTES, "a build takes {peak} bytes");
}
