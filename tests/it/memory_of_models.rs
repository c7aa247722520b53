//! What stages over a whole model take, held against what docs/artifacts.md promises of each: a
//! formula over the model, and something on top. Each order runs in a process of its own, whose
//! peak (mapped files included) is measured.
//!
//! The models are tiny in vocabulary and wide in weights, so that one more copy of a layer breaks
//! the promise.

use std::path::Path;

use crate::support::quantize::Quant;
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Manifest, PartName};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over the \
                    quick brown fox again";

const HIDDEN: u64 = 1024;
const FFN: u64 = 8192;
/// Weights of a layer: q and output, k and v of half their width, the three of the feed-forward
/// layer.
const LAYER: u64 = 3 * HIDDEN * HIDDEN + 3 * HIDDEN * FFN;

fn wide(layers: u64, matrices: Quant) -> Vec<u8> {
    let model = TinyGguf::qwen2()
        .layers(layers as usize)
        .widths(HIDDEN as usize, FFN as usize);
    model.matrices(matrices).write()
}

#[track_caller]
fn held(
    road: &StageRunner,
    kind: &str,
    params: Value,
    slots: &[(&str, &Manifest)],
    promised: u64,
) -> Manifest {
    let (manifest, peak) = road.measure(kind, params.clone(), slots);
    println!(
        "{kind} {params}: {} MiB at most, {} promised",
        peak / MIB,
        promised / MIB
    );
    assert!(
        peak < promised,
        "{kind} {params} takes {peak} bytes, promised are {promised}"
    );
    // A promise of twice what is taken would hold whatever happens.
    assert!(
        peak > promised / 2,
        "{kind} {params} takes {peak} bytes, far less than {promised}"
    );
    manifest
}

#[test]
fn a_reference_holds_some_rows() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let model = road.inspect(&wide(3, Quant::Q8_0));
    let text = road.file(TEXT.as_bytes());
    let params = json!({"windows": 2, "tokens": 12, "prompt": "the", "greedy": 3});
    held(
        &road,
        "reference",
        params,
        &[("model", &model), ("text", &text)],
        80 * MIB,
    );
}

/// The moments need not be of a text: any that are positive definite take the same memory.
#[test]
fn a_calibrated_requant_holds_moments_four_times() {
    const COLUMNS: usize = 4096;
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let gguf = TinyGguf::qwen2()
        .layers(1)
        .widths(256, COLUMNS)
        .matrices(Quant::Q8_0)
        .write();
    let model = road.inspect(&gguf);
    let row = |i: usize| {
        (0..COLUMNS).map(move |j| {
            if i == j {
                2.0
            } else {
                1.0 / (1.0 + i.abs_diff(j) as f32)
            }
        })
    };
    let moments: Vec<u8> = (0..COLUMNS)
        .flat_map(row)
        .flat_map(f32::to_le_bytes)
        .collect();
    let part = road.part(&moments, json!({"columns": COLUMNS, "tokens": 1000}));
    let calibration = Manifest {
        parts: [(
            PartName::new("moments/blk.0.ffn_down.weight").unwrap(),
            part,
        )]
        .into(),
    };
    let promised = 4 * moments.len() as u64 + 32 * MIB;
    for scheme in ["lpbq-32", "int4-channel"] {
        held(
            &road,
            "requant",
            json!({"scheme": scheme}),
            &[("tensors", &model), ("calibration", &calibration)],
            promised,
        );
    }
}

/// A model of four layers in ONNX Runtime: its weights, and its graph.
fn in_runtime(home: &Path, matrices: Quant, scheme: &str) -> (StageRunner, Manifest, Manifest) {
    let road = StageRunner::new(home).tool("ort", &tools::onnxruntime());
    let (model, graph) = road.model(
        &wide(4, matrices),
        scheme,
        json!({"prefill": 12, "context": 20}),
    );
    (road, model, graph)
}

/// One layer as it is stored and in f32, and its largest matrix `more` times more.
fn runtime(graph: &Manifest, more: u64) -> u64 {
    let layer = graph
        .under("weights")
        .filter(|(name, _)| name.starts_with("blk.1."));
    let stored: u64 = layer.map(|(_, part)| part.content.digest.size_bytes).sum();
    stored + 4 * LAYER + 4 * more * HIDDEN * FFN + 80 * MIB
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn scores_hold_one_layer() {
    for (matrices, scheme, more) in [
        (Quant::Q8_0, "native", 1),
        (Quant::Q4_1, "native", 2),
        (Quant::Q4_1, "lpbq-32", 1),
    ] {
        let home = tempfile::tempdir().unwrap();
        let (road, model, graph) = in_runtime(home.path(), matrices, scheme);
        let text = road.file(TEXT.as_bytes());
        let params = json!({"windows": 1, "tokens": 12, "prompt": "the", "greedy": 3});
        let reference = road
            .run("reference", params, &[("model", &model), ("text", &text)])
            .unwrap();
        println!("{matrices:?} {scheme}");
        let slots = [("reference", &reference), ("graph", &graph)];
        let score = held(&road, "evaluate", json!({}), &slots, runtime(&graph, more));
        little(&road, "validate", json!({}), &[("evaluation", &score)]);

        let rounded = road.graph(&model, "int8-block", json!({"prefill": 12, "context": 20}));
        let slots = [
            ("reference", &reference),
            ("graph", &graph),
            ("candidates", &rounded),
        ];
        let one = json!({"match": ["blk.2.ffn_down.weight"]});
        let sensitivity = held(&road, "sensitivity", one, &slots, runtime(&graph, more));
        little(
            &road,
            "mixed-precision",
            json!({"bytes": 1u64 << 40}),
            &[("sensitivity", &sensitivity)],
        );
    }
}

/// Matrices of 32 Mi elements run by halves.
#[test]
#[ignore = "needs ONNX Runtime"]
fn scores_hold_some_rows_of_a_large_matrix() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let gguf = TinyGguf::qwen2()
        .layers(1)
        .widths(1024, 32 << 10)
        .matrices(Quant::Q8_0)
        .write();
    let (model, graph) = road.model(&gguf, "native", json!({"prefill": 12, "context": 20}));
    let text = road.file(TEXT.as_bytes());
    let params = json!({"windows": 1, "tokens": 12});
    let reference = road
        .run("reference", params, &[("model", &model), ("text", &text)])
        .unwrap();
    let slots = [("reference", &reference), ("graph", &graph)];
    let score = held(
        &road,
        "evaluate",
        json!({}),
        &slots,
        3 * 64 * MIB + 80 * MIB,
    );
    let limits = json!({"evaluation": {"ppl_ratio": 1e-5, "kld": 1e-9}});
    road.run(
        "validate",
        json!({"limits": limits}),
        &[("evaluation", &score)],
    )
    .unwrap();
}

/// Stages that never see a weight.
#[track_caller]
fn little(road: &StageRunner, kind: &str, params: Value, slots: &[(&str, &Manifest)]) {
    let (_, peak) = road.measure(kind, params, slots);
    assert!(peak < 64 * MIB, "{kind} takes {peak} bytes");
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn a_calibration_holds_one_layer_and_half_of_its_moments() {
    let home = tempfile::tempdir().unwrap();
    let (road, model, graph) = in_runtime(home.path(), Quant::Q8_0, "native");
    let text = road.file(TEXT.as_bytes());
    let slots = [("graph", &graph), ("model", &model), ("text", &text)];
    held(
        &road,
        "calibrate",
        json!({"windows": 2}),
        &slots,
        runtime(&graph, 1),
    );
    let moments = json!({"windows": 2, "moments": ["blk.*.ffn_down.weight"]});
    held(
        &road,
        "calibrate",
        moments,
        &slots,
        runtime(&graph, 1) + 2 * FFN * FFN,
    );
}
