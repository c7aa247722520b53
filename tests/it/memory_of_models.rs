//! Memory of the stages that need a complete model, compared with the bounds in docs/artifacts.md.
//! Each order runs in its own process, whose peak memory (including mapped files) is measured.
//!
//! The models have a small vocabulary and large layers, so that one more copy of a layer exceeds
//! the bound.

use std::path::Path;

use crate::support::quantize::Quant;
use crate::support::stage_runner::{StageRunner, TEXT};
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Manifest, PartName};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const HIDDEN: u64 = 1024;
const FFN: u64 = 8192;
/// The number of weights in a layer: q and output, k and v with half of their width, and the three
/// matrices of the feed-forward layer.
const LAYER: u64 = 3 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN;

fn wide(layers: u64, matrices: Quant) -> Vec<u8> {
    let model = TinyGguf::qwen2()
        .layers(layers as usize)
        .widths(HIDDEN as usize, FFN as usize);
    model.matrices(matrices).write()
}

/// Runs a stage and checks that its peak is between half the bound and the bound.
#[track_caller]
fn run_within(
    runner: &StageRunner,
    kind: &str,
    params: Value,
    slots: &[(&str, &Manifest)],
    bound: u64,
) -> Manifest {
    let (manifest, peak) = runner.measure(kind, params.clone(), slots);
    println!(
        "{kind} {params}: {} MiB at most, the bound is {}",
        peak / MIB,
        bound / MIB
    );
    assert!(
        peak < bound,
        "{kind} {params} takes {peak} bytes, the bound is {bound}"
    );
    // A loose bound would not detect a regression.
    assert!(
        peak > bound / 2,
        "{kind} {params} takes {peak} bytes, far less than {bound}"
    );
    manifest
}

#[test]
fn reference_holds_a_few_rows() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&wide(3, Quant::Q8_0));
    let text = runner.file(TEXT.as_bytes());
    let params = json!({"windows": 2, "tokens": 12, "prompt": "the", "greedy": 3});
    run_within(
        &runner,
        "reference",
        params,
        &[("model", &model), ("text", &text)],
        80 * MIB,
    );
}

/// The moments are artificial: any positive definite matrix needs the same memory.
#[test]
fn calibrated_requant_holds_four_copies_of_the_moments() {
    const COLUMNS: usize = 4096;
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let gguf = TinyGguf::qwen2()
        .layers(1)
        .widths(256, COLUMNS)
        .matrices(Quant::Q8_0)
        .write();
    let model = runner.inspect(&gguf);
    let mut moments = vec![];
    for i in 0..COLUMNS {
        for j in 0..COLUMNS {
            let moment = match i.abs_diff(j) {
                0 => 2.0,
                distance => 1.0 / (1.0 + distance as f32),
            };
            moments.extend(moment.to_le_bytes());
        }
    }
    let part = runner.part(&moments, json!({"columns": COLUMNS, "tokens": 1000}));
    let calibration = Manifest {
        parts: [(
            PartName::new("moments/blk.0.ffn_down.weight").unwrap(),
            part,
        )]
        .into(),
    };
    let bound = 4 * moments.len() as u64 + 32 * MIB;
    for scheme in ["lpbq-32", "int4-channel"] {
        run_within(
            &runner,
            "requant",
            json!({"scheme": scheme}),
            &[("tensors", &model), ("calibration", &calibration)],
            bound,
        );
    }
}

/// A model of four layers and its graph, for ONNX Runtime.
fn with_runtime(home: &Path, matrices: Quant, scheme: &str) -> (StageRunner, Manifest, Manifest) {
    let runner = StageRunner::new(home).tool("ort", &tools::onnxruntime());
    let (model, graph) = runner.model(
        &wide(4, matrices),
        scheme,
        json!({"prefill": 12, "context": 20}),
    );
    (runner, model, graph)
}

/// The bound for one layer, stored and in f32, and `more` further copies of its largest matrix.
fn layer_bound(graph: &Manifest, more: u64) -> u64 {
    let mut stored = 0;
    for (name, part) in graph.under("weights") {
        if name.starts_with("blk.1.") {
            stored += part.content.digest.size_bytes;
        }
    }
    stored + 4 * LAYER + 4 * more * HIDDEN * FFN + 80 * MIB
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn evaluate_and_sensitivity_hold_one_layer() {
    for (matrices, scheme, more) in [
        (Quant::Q8_0, "native", 1),
        (Quant::Q4_1, "native", 2),
        (Quant::Q4_1, "lpbq-32", 1),
    ] {
        let home = tempfile::tempdir().unwrap();
        let (runner, model, graph) = with_runtime(home.path(), matrices, scheme);
        let text = runner.file(TEXT.as_bytes());
        let params = json!({"windows": 1, "tokens": 12, "prompt": "the", "greedy": 3});
        let reference = runner
            .run("reference", params, &[("model", &model), ("text", &text)])
            .unwrap();
        println!("{matrices:?} {scheme}");
        let slots = [("reference", &reference), ("graph", &graph)];
        let score = run_within(
            &runner,
            "evaluate",
            json!({}),
            &slots,
            layer_bound(&graph, more),
        );
        run_within_64_mib(&runner, "validate", json!({}), &[("evaluation", &score)]);

        let rounded = runner.graph(&model, "int8-block", json!({"prefill": 12, "context": 20}));
        let slots = [
            ("reference", &reference),
            ("graph", &graph),
            ("candidates", &rounded),
        ];
        let one = json!({"match": ["blk.2.ffn_down.weight"]});
        let sensitivity = run_within(
            &runner,
            "sensitivity",
            one,
            &slots,
            layer_bound(&graph, more),
        );
        run_within_64_mib(
            &runner,
            "mixed-precision",
            json!({"bytes": 1u64 << 40}),
            &[("sensitivity", &sensitivity)],
        );
    }
}

/// Matrices of 32 Mi elements are run in two halves.
#[test]
#[ignore = "needs ONNX Runtime"]
fn evaluate_splits_large_matrices() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let gguf = TinyGguf::qwen2()
        .layers(1)
        .widths(1024, 32 << 10)
        .matrices(Quant::Q8_0)
        .write();
    let (model, graph) = runner.model(&gguf, "native", json!({"prefill": 12, "context": 20}));
    let text = runner.file(TEXT.as_bytes());
    let params = json!({"windows": 1, "tokens": 12});
    let reference = runner
        .run("reference", params, &[("model", &model), ("text", &text)])
        .unwrap();
    let slots = [("reference", &reference), ("graph", &graph)];
    let score = run_within(
        &runner,
        "evaluate",
        json!({}),
        &slots,
        3 * 64 * MIB + 80 * MIB,
    );
    let limits = json!({"evaluation": {"ppl_ratio": 1e-5, "kld": 1e-9}});
    runner
        .run(
            "validate",
            json!({"limits": limits}),
            &[("evaluation", &score)],
        )
        .unwrap();
}

/// Runs a stage that reads no weights.
#[track_caller]
fn run_within_64_mib(runner: &StageRunner, kind: &str, params: Value, slots: &[(&str, &Manifest)]) {
    let (_, peak) = runner.measure(kind, params, slots);
    assert!(peak < 64 * MIB, "{kind} takes {peak} bytes");
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn calibrate_holds_one_layer_and_half_of_its_moments() {
    let home = tempfile::tempdir().unwrap();
    let (runner, model, graph) = with_runtime(home.path(), Quant::Q8_0, "native");
    let text = runner.file(TEXT.as_bytes());
    let slots = [("graph", &graph), ("model", &model), ("text", &text)];
    run_within(
        &runner,
        "calibrate",
        json!({"windows": 2}),
        &slots,
        layer_bound(&graph, 1),
    );
    let moments = json!({"windows": 2, "moments": ["blk.*.ffn_down.weight"]});
    run_within(
        &runner,
        "calibrate",
        moments,
        &slots,
        layer_bound(&graph, 1) + 2 * FFN * FFN,
    );
}
