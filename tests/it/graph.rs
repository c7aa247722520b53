//! The stage `graph`: its output, rejected inputs, and the logits of the graphs in ONNX Runtime.

use std::collections::BTreeSet;
use std::fs;

use crate::support::onnx_runtime::compare_with_numpy;
use crate::support::tiny_weights::TinyWeights;
use crate::support::workspace::Folder;
use kiln::action::{Inputs, Manifest, Stage};
use kiln::model::decoder::DecoderSpec;
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
fn prefill_and_decode_graphs_share_weights() {
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
    // The embedding is also the head.
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

    let inputs = &model.inputs(&folder);
    for (name, part) in &inputs.one("weights").unwrap().parts {
        assert_eq!(
            onnx.get(&format!("weights/{name}")),
            Some(part),
            "{name} is unchanged"
        );
    }
    assert_eq!(
        onnx.get("model.json"),
        inputs.one("model").unwrap().get("model.json")
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
            for what in ["residual", "key", "scores.0", "gate_up", "down"] {
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

/// The weight encodings in the facts of a graph, which come from its function calls, are those in
/// the facts of `requant`.
#[test]
fn graph_facts_list_the_weight_encodings() {
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
fn output_is_deterministic() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let model = TinyWeights::qwen2();
    let [first, second] = [(); 2].map(|()| build(&folder, &model, small()));
    assert_eq!(first, second);
    let bytes = folder.bytes(first.get("prefill.onnx").unwrap());
    let encoded = prost::Message::encode_to_vec(&decode(&bytes).unwrap());
    assert!(*bytes == *encoded, "decoding and encoding round-trips");
}

#[track_caller]
fn check_rejected(change: impl Fn(&mut TinyWeights, &mut Inputs), expect: &str) {
    check_rejected_with(&small(), TinyWeights::llama(), change, expect);
}

#[track_caller]
fn check_rejected_with(
    params: &Value,
    mut model: TinyWeights,
    change: impl Fn(&mut TinyWeights, &mut Inputs),
    expect: &str,
) {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let mut inputs = model.inputs(&folder);
    change(&mut model, &mut inputs);
    let model_json = serde_json::to_value(&model.facts).unwrap();
    let part = folder.part(b"{}", model_json);
    inputs.slots.get_mut("model").unwrap()[0]
        .1
        .parts
        .insert("model.json".parse().unwrap(), part);
    let problem = stage(&kiln::stages::all())
        .expand(params, &inputs)
        .unwrap_err();
    assert_eq!(problem.message, expect);
}

#[test]
fn all_weight_mismatches_are_reported_at_once() {
    check_rejected(
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
fn unsupported_decoder_parts_are_rejected_before_running() {
    check_rejected(
        |model, _| {
            let mut spec = DecoderSpec::try_from(model.facts.clone()).unwrap();
            spec.layers[1].attention.rotary.as_mut().unwrap().base = 1e6;
            model.facts = spec.into();
        },
        "the host of the graphs does not support layers of different RoPE",
    );
}

#[test]
fn without_floats_weights_and_keys_must_allow_codes() {
    let mut params = small();
    for (name, value) in [("activations", "u16"), ("kv", "u8"), ("float", "never")] {
        params[name] = value.into();
    }
    check_rejected_with(
        &params,
        TinyWeights::llama(),
        |_, _| {},
        "`float = \"never\"`: 15 of the weights of linear layers cannot multiply codes: \
         `blk.0.attn_k.weight` (uint4 x32 f16 + f16), `blk.0.attn_output.weight` (uint4 x32 \
         f16 + f16), `blk.0.attn_q.weight` (uint4 x32 f16 + f16), `blk.0.attn_v.weight` (uint4 x32 \
         f16 + f16), 11 more",
    );
    check_rejected_with(
        &params,
        TinyWeights::qwen2(),
        |_, _| {},
        "`float = \"never\"` needs `key_centre = \"none\"`: the constants of centred keys are \
         numbers, not codes",
    );
}

#[test]
fn the_graph_does_not_depend_on_the_architecture_name() {
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
fn all_parameter_problems_are_reported_at_once() {
    let registry = kiln::stages::all();
    let params = json!({"prefill": 0, "context": 0, "residual_exponent": 13});
    let problems = stage(&registry).check(&params, &[]).unwrap_err();
    let paths: Vec<&str> = problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(paths, ["context", "prefill", "residual_exponent"]);
    let params = json!({"float": "never", "key_centre": "bias", "sqnr_db": 50.0});
    let mut messages = vec![];
    for found in stage(&registry).check(&params, &[]).unwrap_err() {
        messages.push(format!("{}: {}", found.path, found.problem.message));
    }
    assert_eq!(
        messages,
        [
            "float: `float = \"never\"` needs `activations = \"u16\"`",
            "float: `float = \"never\"` needs `kv = \"u8\"` or `kv = \"u16\"`",
            "sqnr_db: `float = \"never\"` stores every value in codes, whatever its `sqnr_db`: \
             remove one of them",
            "key_centre: `float = \"never\"` needs `key_centre = \"none\"`: the constants of \
             centred keys are numbers, not codes",
        ]
    );
    assert!(
        stage(&registry)
            .check(&json!({"prefill": 128, "context": 128}), &[])
            .is_err()
    );
    assert!(stage(&registry).check(&json!({}), &[]).is_ok());
}

fn tiny_in_onnx_runtime(model: &TinyWeights, params: Value) {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    compare_with_numpy(&folder, &build(&folder, model, params), &[], 5e-6);
}

#[test]
#[ignore = "needs a package index"]
fn onnx_runtime_matches_numpy_for_llama() {
    tiny_in_onnx_runtime(&TinyWeights::llama(), small());
}

#[test]
#[ignore = "needs a package index"]
fn onnx_runtime_matches_numpy_for_qwen2_in_every_encoding() {
    tiny_in_onnx_runtime(&TinyWeights::qwen2(), small());
}

#[test]
#[ignore = "needs a package index"]
fn exponents_do_not_change_the_logits() {
    let params = json!({"prefill": 8, "context": 24, "residual_exponent": 4, "ffn_exponent": 3});
    tiny_in_onnx_runtime(&TinyWeights::qwen2(), params);
}

#[test]
#[ignore = "needs a package index"]
fn onnx_runtime_matches_numpy_for_smollm2() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let gguf = fs::read(crate::support::tools::smollm2()).unwrap();
    let model = folder.inspect(&gguf).unwrap();
    let slots = [("tensors", &model)];
    let weights = folder.run("requant", json!({}), &slots).unwrap();
    let slots = [("model", &model), ("weights", &weights)];
    let onnx = folder
        .run("graph", json!({"context": 256}), &slots)
        .unwrap();
    let tokenizer =
        Tokenizer::from_metadata(&folder.bytes(model.part("tokenizer.json").unwrap())).unwrap();
    let tokens = tokenizer
        .encode(include_str!("../../plans/data/eval.txt"))
        .unwrap();
    compare_with_numpy(&folder, &onnx, &tokens, 1e-5);
}
