//! The stage `graph`: what it writes, what it refuses, and that ONNX Runtime computes the model
//! with it.

use std::collections::BTreeSet;
use std::fs;

use crate::support::peers::{python, said};
use crate::support::tiny_weights::TinyWeights;
use crate::support::workspace::Folder;
use kiln::action::{Inputs, Manifest, Stage};
use kiln::model::decoder::{Activation, DecoderSpec};
use kiln::model::facts::GraphFacts;
use kiln::model::onnx::{Checked, Summary, decode};
use kiln::model::tokenizer::Tokenizer;
use kiln::model::weight::{Activations, Element, WeightEncoding, WeightFacts, WeightUse};
use serde_json::{Value, json};

fn stage(registry: &kiln::action::Registry) -> &dyn Stage {
    registry.get("graph").unwrap()
}

fn build(folder: &Folder, model: &TinyWeights, params: Value) -> Manifest {
    folder
        .run_stage(stage(&kiln::stages::all()), params, &model.inputs(folder))
        .unwrap()
}

fn small() -> Value {
    json!({"prefill": 8, "context": 24})
}

#[test]
fn two_graphs_under_genies_names_over_the_same_weights() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let model = TinyWeights::llama();
    let onnx = build(&folder, &model, small());
    let facts = |file: &str| onnx.get(file).unwrap().facts.read::<GraphFacts>().unwrap();
    let [block, offset] = [Element::Int8, Element::Uint4].map(|codes| {
        let offsets = (codes == Element::Uint4).then_some(Element::F16);
        WeightEncoding::blocks(codes, 32, Element::F16, offsets, 64)
    });
    let activations = Activations::F16;
    let linear = |weight| WeightUse::Linear {
        weight,
        activations,
    };
    // The table of the embedding is the head too.
    let lookup = WeightUse::Lookup { weight: block };
    let uses = vec![linear(block), linear(offset), lookup];
    assert_eq!(
        facts("prefill.onnx"),
        GraphFacts {
            name: "prompt_ar8_cl24_1_of_1".into(),
            tokens: 8,
            context: 24,
            shard: None,
            weights: uses.clone()
        }
    );
    assert_eq!(
        facts("decode.onnx"),
        GraphFacts {
            name: "token_ar1_cl24_1_of_1".into(),
            tokens: 1,
            context: 24,
            shard: None,
            weights: uses.clone()
        }
    );

    let given = &model.inputs(&folder);
    for (name, part) in &given.one("weights").unwrap().parts {
        assert_eq!(
            onnx.get(&format!("weights/{name}")),
            Some(part),
            "{name} is passed on"
        );
    }
    assert_eq!(
        onnx.get("model.json"),
        given.one("model").unwrap().get("model.json")
    );

    let prefill = decode(&folder.bytes(onnx.get("prefill.onnx").unwrap())).unwrap();
    let page = Summary::of(&prefill).to_string();
    let expected = "\
ONNX graph `prompt_ar8_cl24_1_of_1`: IR version 10, opset ai.onnx 21, kiln 1

8 inputs
  input_ids                i32 [1, 8]
  attention_mask           f32 [1, 1, 8, 24]
  position_ids_cos         f32 [1, 1, 8, 8]
  position_ids_sin         f32 [1, 1, 8, 8]
  past_key_0_in            f32 [2, 1, 16, 16]
  past_value_0_in          f32 [2, 1, 16, 16]
  past_key_1_in            f32 [2, 1, 16, 16]
  past_value_1_in          f32 [2, 1, 16, 16]

5 outputs
  logits                   f32 [1, 1, 8, 70]
  past_key_0_out           f32 [2, 1, 16, 8]
  past_value_0_out         f32 [2, 1, 8, 16]
  past_key_1_out           f32 [2, 1, 16, 8]
  past_value_1_out         f32 [2, 1, 8, 16]
";
    assert!(page.starts_with(expected), "{page}");
    for file in ["prefill.onnx", "decode.onnx"] {
        let model = decode(&folder.bytes(onnx.get(file).unwrap())).unwrap();
        let checked = Checked::new(&model).unwrap();
        for layer in 0..2 {
            for what in ["residual", "key", "scores", "gate_up", "down"] {
                assert!(
                    checked
                        .types
                        .contains_key(format!("blk.{layer}.{what}").as_str()),
                    "{what}"
                );
            }
        }
    }
}

/// `requant` states encodings in facts, a graph by the functions that it calls: they are the same.
#[test]
fn a_graph_states_the_encodings_of_its_weights() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let model = TinyWeights::qwen2();
    let onnx = build(&folder, &model, small());
    let facts: GraphFacts = onnx.part("decode.onnx").unwrap().facts.read().unwrap();
    let mut linears = BTreeSet::new();
    let mut lookups = BTreeSet::new();
    for (name, part) in onnx.under("weights") {
        let weight: WeightFacts = part.facts.read().unwrap();
        match name {
            _ if weight.shape.len() == 1 => false,
            _ if name.starts_with("token_embd.") => lookups.insert(weight.encoding),
            _ => linears.insert(weight.encoding),
        };
    }
    let mut stated = (BTreeSet::new(), BTreeSet::new());
    for weight_use in facts.weights {
        match weight_use {
            WeightUse::Linear {
                weight,
                activations: Activations::F16,
            } => stated.0.insert(weight),
            WeightUse::Lookup { weight } => stated.1.insert(weight),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(linears.len(), 6, "every way to store a weight");
    assert_eq!(stated, (linears, lookups));
}

#[test]
fn the_same_model_gives_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let model = TinyWeights::qwen2();
    let [first, second] = [(); 2].map(|()| build(&folder, &model, small()));
    assert_eq!(first, second);
    let bytes = folder.bytes(first.get("prefill.onnx").unwrap());
    let again = prost::Message::encode_to_vec(&decode(&bytes).unwrap());
    assert!(*bytes == *again, "reading and writing changes nothing");
}

#[track_caller]
fn refuses(change: impl Fn(&mut TinyWeights, &mut Inputs), expect: &str) {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let mut model = TinyWeights::llama();
    let mut inputs = model.inputs(&folder);
    change(&mut model, &mut inputs);
    let model_json = serde_json::to_value(&model.facts).unwrap();
    let part = folder.part(b"{}", model_json);
    inputs.slots.get_mut("model").unwrap()[0]
        .1
        .parts
        .insert("model.json".parse().unwrap(), part);
    let problem = stage(&kiln::stages::all())
        .expand(&small(), &inputs)
        .unwrap_err();
    assert_eq!(problem.message, expect);
}

#[test]
fn weights_that_do_not_fit_are_named_all_at_once() {
    refuses(
        |_, inputs| {
            let weights = &mut inputs.slots.get_mut("weights").unwrap()[0].1.parts;
            weights.remove("blk.0.attn_norm.weight/values");
            weights.remove("blk.1.ffn_up.weight/scales");
            let part = weights.remove("blk.1.ffn_down.weight/codes").unwrap();
            weights.insert("rope_freqs.weight/values".parse().unwrap(), part.clone());
            weights.insert("blk.1.ffn_gate.weight/codes".parse().unwrap(), part);
        },
        "5 of the weights do not fit the model: `blk.0.attn_norm.weight` [64] is missing; \
         `blk.1.ffn_down.weight`: it has no codes; `blk.1.ffn_gate.weight`: its parts are of \
         different weights: uint4 x32 f16 + f16 [64, 96] and uint4 x32 f16 + f16 [96, 64]; \
         `blk.1.ffn_up.weight`: it has no scales; `rope_freqs.weight` has no place in a `llama` \
         decoder",
    );
}

#[test]
fn parts_that_no_graph_is_known_for_are_refused_before_anything_runs() {
    refuses(
        |model, _| {
            let mut spec = DecoderSpec::try_from(model.facts.clone()).unwrap();
            spec.layers[1].activation = Activation::GeluTanh;
            model.facts = spec.into();
        },
        "the graph does not support the activation GELU (tanh)",
    );
}

#[test]
fn the_graph_depends_on_the_parts_of_a_decoder_and_not_on_its_name() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let llama = TinyWeights::llama();
    let mut other = llama.clone();
    other.facts.architecture = "of-known-parts".into();
    let [llama, other] = [llama, other].map(|model| build(&folder, &model, small()));
    for file in ["prefill.onnx", "decode.onnx"] {
        assert_eq!(llama.get(file), other.get(file));
    }
}

#[test]
fn parameters_are_checked_together() {
    let registry = kiln::stages::all();
    let params = json!({"prefill": 0, "context": 0, "residual_exponent": 13});
    let problems = stage(&registry).check(&params, &[]).unwrap_err();
    let paths: Vec<&str> = problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(paths, ["context", "prefill", "residual_exponent"]);
    assert!(
        stage(&registry)
            .check(&json!({"prefill": 128, "context": 128}), &[])
            .is_err()
    );
    assert!(stage(&registry).check(&json!({}), &[]).is_ok());
}

/// Runs the graphs `onnx` in ONNX Runtime against a decoder in numpy, on `tokens` (random ones if
/// there are none).
#[track_caller]
fn run_in_onnx_runtime(folder: &Folder, onnx: &Manifest, tokens: &[u32], tolerance: f32) {
    let out = tempfile::tempdir().unwrap();
    let mut weights = serde_json::Map::new();
    for (name, part) in &onnx.parts {
        let path = out.path().join(name.as_str());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &*folder.bytes(part)).unwrap();
        if let Some(name) = name.as_str().strip_prefix("weights/") {
            weights.insert(name.into(), part.facts.value().clone());
        }
    }
    let facts = json!({"model": onnx.get("model.json").unwrap().facts, "weights": weights, "tokens": tokens});
    fs::write(out.path().join("facts.json"), facts.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peers/run_graphs.py");
    println!(
        "{}",
        said(
            python()
                .arg(script)
                .arg(out.path())
                .arg(tolerance.to_string())
        )
    );
}

fn tiny_in_onnx_runtime(model: &TinyWeights, params: Value) {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    run_in_onnx_runtime(&folder, &build(&folder, model, params), &[], 5e-6);
}

#[test]
#[ignore = "needs a package index"]
fn onnx_runtime_computes_a_llama() {
    tiny_in_onnx_runtime(&TinyWeights::llama(), small());
}

#[test]
#[ignore = "needs a package index"]
fn onnx_runtime_computes_a_qwen2_in_every_spelling() {
    tiny_in_onnx_runtime(&TinyWeights::qwen2(), small());
}

#[test]
#[ignore = "needs a package index"]
fn powers_of_two_leave_the_logits_alone() {
    let params = json!({"prefill": 8, "context": 24, "residual_exponent": 4, "ffn_exponent": 3});
    tiny_in_onnx_runtime(&TinyWeights::qwen2(), params);
}

#[test]
#[ignore = "needs a package index"]
fn onnx_runtime_computes_smollm2() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let registry = kiln::stages::all();
    let run = |kind: &str, params: Value, slots: &[(&str, &Manifest)]| {
        let slot = |(slot, given): &(&str, &Manifest)| {
            (slot.to_string(), vec![(slot.to_string(), (*given).clone())])
        };
        let inputs = Inputs {
            slots: slots.iter().map(slot).collect(),
            ..Inputs::default()
        };
        folder
            .run_stage(registry.get(kind).unwrap(), params, &inputs)
            .unwrap()
    };
    let gguf = folder.part(
        &fs::read(crate::support::tools::smollm2()).unwrap(),
        json!({}),
    );
    let file = Manifest {
        parts: [("model.gguf".parse().unwrap(), gguf)].into(),
    };
    let model = run("inspect", json!({}), &[("gguf", &file)]);
    let weights = run("requant", json!({}), &[("tensors", &model)]);
    let onnx = run(
        "graph",
        json!({"context": 256}),
        &[("model", &model), ("weights", &weights)],
    );
    let tokenizer =
        Tokenizer::from_metadata(&folder.bytes(model.part("tokenizer.json").unwrap())).unwrap();
    let tokens = tokenizer
        .encode(include_str!("../../plans/data/eval.txt"))
        .unwrap();
    run_in_onnx_runtime(&folder, &onnx, &tokens, 1e-5);
}
