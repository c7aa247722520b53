//! Weights pass in little memory: a model larger than the budget goes through every stage that runs on kiln's own threads,
//! each order in a process of its own, whose peak (mapped files included) is measured.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use kiln::action::{Demand, Inputs, Isolation, Manifest, Part};
use kiln::execute::{Executor, Local, Watch};
use kiln::stages;
use kiln::store::{BlobStore, Disk};
use serde_json::{Value, json};
use support::quantize::Quant;
use support::tiny_gguf::TinyGguf;

/// What docs/artifacts.md promises.
const BUDGET_BYTES: u64 = 64 << 20;

struct Silent;

impl Watch for Silent {
    fn progress(&self, _: u64, _: u64, _: &str) {}

    fn cancelled(&self) -> bool {
        false
    }
}

fn run(store: &Disk, kind: &str, params: Value, slots: &[(&str, &Manifest)]) -> Manifest {
    let stages = stages::all();
    let slot = |(slot, given): &(&str, &Manifest)| (slot.to_string(), vec![("giver".into(), (*given).clone())]);
    let inputs = Inputs { slots: slots.iter().map(slot).collect::<BTreeMap<_, _>>(), ..Inputs::default() };
    let local = Local { store, stages: &stages, program: env!("CARGO_BIN_EXE_kiln").into() };
    let stage = stages.get(kind).unwrap();
    let (mut manifest, mut peak) = (Manifest::default(), 0);
    for order in stage.expand(&params, &inputs).unwrap() {
        let demand = Demand { isolation: Isolation::Process, ..order.demand };
        let name = order.name.clone();
        let ran = local.run(&order.into_action(stage.spec()), &demand, &Silent).unwrap();
        peak = peak.max(ran.peak_memory_bytes.unwrap());
        let full = |output: String| if name.is_empty() { output } else { format!("{name}/{output}") };
        manifest.parts.extend(ran.outputs.into_iter().map(|(to, part)| (full(to.to_string()).parse().unwrap(), part)));
    }
    println!("{kind} {params}: {peak} bytes at most");
    assert!(peak < BUDGET_BYTES, "{kind} {params} takes {peak} bytes, the budget is {BUDGET_BYTES}");
    manifest
}

fn check(folder: &Path, model: TinyGguf) {
    let store = Disk::open(folder).unwrap();
    let bytes = model.write();
    assert!(bytes.len() as u64 > 3 * BUDGET_BYTES / 2, "a model of {} bytes proves nothing", bytes.len());
    let mut sink = store.create().unwrap();
    sink.write_all(&bytes).unwrap();
    let part = Part { content: sink.finish().unwrap(), facts: Default::default() };
    let file = Manifest { parts: [("model.gguf".parse().unwrap(), part)].into() };
    let model = run(&store, "inspect", json!({}), &[("gguf", &file)]);
    run(&store, "dequant", json!({ "type": "f16" }), &[("model", &model)]);
    run(&store, "requant", json!({ "scheme": "int8-block" }), &[("tensors", &model)]);
    let weights = run(&store, "requant", json!({}), &[("tensors", &model)]);
    run(&store, "graph", json!({ "prefill": 8, "context": 24 }), &[("model", &model), ("weights", &weights)]);
}

#[test]
fn a_model_larger_than_the_budget_passes() {
    let folder = tempfile::tempdir().unwrap();
    check(folder.path(), TinyGguf::qwen2().layers(1).widths(2048, 16384).matrices(Quant::Q8_0));
}
