//! Compares the logits of lowered graphs with the reference, which shares no code with the graphs.
//! An interpreter computes the device ops in f32; the ignored tests use the simulator.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::interpreter::Interpreter;
use crate::support::quantize::Quant;
use crate::support::restore;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::Folder;
use half::f16;
use kiln::action::Manifest;
use kiln::base::Result;
use kiln::lower::lower;
use kiln::model::decoder::DecoderSpec;
use kiln::model::facts::GraphFacts;
use kiln::model::onnx::decode;
use kiln::model::reference::{Reference, Weights};
use kiln::model::weight::WeightFacts;
use kiln::qnn::{Backend, Context, DeviceGraph, GraphInfo, GraphOptions, HtpGraph, Soc};
use kiln::run::decoder::{Decoder, Engine, Graph, Tensor};
use serde_json::{Value, json};

/// A tiny model after all stages.
struct Lowered {
    facts: DecoderSpec,
    plain: PlainWeights,
    profiles: [GraphFacts; 2],
    graphs: [DeviceGraph; 2],
}

/// The length of a row and the values of each weight.
struct PlainWeights(BTreeMap<String, (usize, Vec<f32>)>);

impl Weights for PlainWeights {
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let (columns, values) = &self.0[name];
        Ok(values[rows.start * columns..rows.end * columns].to_vec())
    }
}

fn lower_model(model: &TinyGguf, requant: Value, graph: Value) -> Lowered {
    let scheme = requant["scheme"].as_str().unwrap_or("native");
    let rounded = scheme.contains("channel") || scheme.contains("lpbq");
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let run = |kind: &str, params: Value, slots: &[(&str, &Manifest)]| {
        folder.run(kind, params, slots).unwrap()
    };
    let model = folder.inspect(&model.write()).unwrap();
    let weights = run("requant", requant, &[("tensors", &model)]);
    let plain = run("dequant", json!({}), &[("model", &model)]);
    let onnx = run("graph", graph, &[("model", &model), ("weights", &weights)]);
    // A scheme that rounds is compared with the rounded values.
    let source = if rounded { &weights } else { &plain };
    let mut plain = BTreeMap::new();
    for name in restore::names(source) {
        let values = restore::weight(&folder, source, &name);
        plain.insert(name.clone(), (columns(source, &name), values));
    }
    let files = ["prefill.onnx", "decode.onnx"].map(|file| onnx.part(file).unwrap());
    let facts: DecoderSpec = model.part("model.json").unwrap().facts.read().unwrap();
    Lowered {
        facts,
        plain: PlainWeights(plain),
        profiles: files.map(|file| file.facts.read().unwrap()),
        graphs: files.map(|file| {
            let model = decode(&folder.bytes(file)).unwrap();
            lower(&model, &|location| Ok(folder.bytes(onnx.part(location)?))).unwrap()
        }),
    }
}

/// The length of a row of a weight; a vector is one row.
fn columns(weights: &Manifest, name: &str) -> usize {
    let blob = |what: &str| weights.get(&format!("{name}/{what}"));
    let part = blob("codes").or(blob("values")).unwrap();
    let facts: WeightFacts = part.facts.read().unwrap();
    *facts.shape.last().unwrap() as usize
}

/// The largest difference from the logits of the reference, relative to the largest logit, for a
/// prefill and for decode steps.
fn logit_error(lowered: Lowered, engine: impl Engine + 'static) -> f32 {
    let token = |i| (i * 37 + 11) % lowered.facts.vocab;
    let tokens: Vec<u32> = (0..lowered.profiles[0].tokens).map(token).collect();
    let reference = Reference::new(&lowered.facts, &lowered.plain, 64);
    let [state] = &reference.states(&[&tokens], |_| Ok(())).unwrap()[..] else {
        panic!()
    };
    let mut expected = vec![];
    let mut collect = |logits: &[f32]| {
        expected.extend_from_slice(logits);
        Ok(())
    };
    reference.logits(state, &mut collect).unwrap();
    let vocab = lowered.facts.vocab as usize;
    let mut decoder = Decoder {
        engine: Box::new(engine),
        model: lowered.facts,
    };
    let (logits, mut cache) = decoder.start(&tokens).unwrap();
    let mut worst = difference(&logits, &expected);
    let cached = tokens.len() - 2;
    cache.truncate(cached);
    for (token, row) in tokens.iter().zip(expected.chunks(vocab)).skip(cached) {
        worst = worst.max(difference(&decoder.step(*token, &mut cache).unwrap(), row));
    }
    worst
}

fn difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f32, |top, x| top.max(x.abs()));
    let mut worst = 0f32;
    for (x, y) in got.iter().zip(expected) {
        let error = (x - y).abs();
        if error.is_nan() || error > worst {
            worst = error;
        }
    }
    worst / largest
}

struct Interpreted([GraphFacts; 2], [Interpreter; 2]);

impl Engine for Interpreted {
    fn facts(&self, graph: Graph) -> Result<GraphFacts> {
        Ok(self.0[graph as usize].clone())
    }

    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        _: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut floats = BTreeMap::new();
        for (name, tensor) in inputs {
            let values = match tensor {
                Tensor::I32(_, ids) => ids.iter().map(|&id| id as f32).collect(),
                Tensor::F32(_, values) => values.clone(),
            };
            floats.insert(name.clone(), values);
        }
        Ok(self.1[graph as usize].run(&floats))
    }
}

#[track_caller]
fn check(model: &TinyGguf, requant: Value, graph: Value) {
    let mut lowered = lower_model(model, requant, graph);
    let engine = Interpreted(
        lowered.profiles.clone(),
        std::mem::take(&mut lowered.graphs).map(Interpreter::new),
    );
    let error = logit_error(lowered, engine);
    println!("largest error {error:.1e}");
    assert!(error < 2e-3, "{error}");
}

fn small() -> Value {
    json!({"prefill": 6, "context": 16})
}

#[test]
fn llama_q4_1_with_reordered_rows_and_a_tied_head() {
    check(
        &TinyGguf::llama().tensor_type("token_embd.weight", Quant::Q8_0),
        json!({}),
        small(),
    );
}

#[test]
fn qwen2_q4_0_with_biases() {
    check(&TinyGguf::qwen2(), json!({}), small());
}

#[test]
fn embedding_with_offsets() {
    check(&TinyGguf::llama(), json!({}), small());
}

#[test]
fn f16_weights() {
    check(&TinyGguf::llama(), json!({"scheme": "f16"}), small());
}

#[test]
fn large_key_biases_of_qwen2() {
    check(&TinyGguf::qwen2().large_biases(), json!({}), small());
}

#[test]
fn every_scheme() {
    let scaled = json!({"prefill": 6, "context": 16, "residual_exponent": 3, "ffn_exponent": 2});
    for scheme in [
        "native-safe",
        "int8-channel",
        "int4-channel",
        "lpbq-16",
        "lpbq-32",
        "lpbq-64",
    ] {
        println!("{scheme}");
        check(
            &TinyGguf::qwen2(),
            json!({ "scheme": scheme }),
            scaled.clone(),
        );
    }
    let embedding = json!([{"match": "token_embd.weight", "scheme": "native"}]);
    let shifted = json!({"scheme": "lpbq-32-shifted", "override": embedding});
    check(&TinyGguf::qwen2(), shifted, scaled);
}

#[test]
fn exponents_do_not_change_the_logits() {
    let scaled = json!({"prefill": 6, "context": 16, "residual_exponent": 3, "ffn_exponent": 2});
    check(&TinyGguf::qwen2(), json!({}), scaled.clone());
    check(&TinyGguf::llama(), json!({}), scaled);
}

/// Both graphs, built for a Snapdragon 8 Gen 3, on Qualcomm's simulator.
struct Htp {
    facts: [GraphFacts; 2],
    context: Context,
    graphs: [GraphInfo; 2],
}

impl Htp {
    fn new(facts: &[GraphFacts; 2], graphs: &[DeviceGraph; 2]) -> Self {
        let backend =
            Backend::htp(&crate::support::tools::qnn(), Soc::named("sm8650").unwrap()).unwrap();
        let context = Context::new(&backend, false).unwrap();
        let options = GraphOptions::Htp(HtpGraph {
            vtcm_mb: 8,
            ..HtpGraph::default()
        });
        let graphs = graphs
            .each_ref()
            .map(|graph| context.build(graph, &options).unwrap());
        Htp {
            facts: facts.clone(),
            context,
            graphs,
        }
    }
}

impl Engine for Htp {
    fn facts(&self, graph: Graph) -> Result<GraphFacts> {
        Ok(self.facts[graph as usize].clone())
    }

    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        _: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut raw = BTreeMap::new();
        for (name, tensor) in inputs {
            let mut bytes = vec![];
            match tensor {
                Tensor::I32(_, ids) => {
                    for id in ids {
                        bytes.extend(id.to_le_bytes());
                    }
                }
                Tensor::F32(_, values) => {
                    for value in values {
                        bytes.extend(f16::from_f32(*value).to_le_bytes());
                    }
                }
            }
            raw.insert(name.clone(), bytes);
        }
        let info = &self.graphs[graph as usize];
        let mut outputs = BTreeMap::new();
        for (name, bytes) in self.context.execute(info, &raw)? {
            let float = |bytes: &[u8; 2]| f16::from_le_bytes(*bytes).to_f32();
            outputs.insert(name, bytes.as_chunks().0.iter().map(float).collect());
        }
        Ok(outputs)
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn the_simulator_matches_the_reference_for_llama() {
    let _alone = crate::alone();
    let lowered = lower_model(
        &TinyGguf::llama().tensor_type("token_embd.weight", Quant::Q8_0),
        json!({}),
        small(),
    );
    let engine = Htp::new(&lowered.profiles, &lowered.graphs);
    let error = logit_error(lowered, engine);
    assert!(error < 1e-2, "{error}");
    println!("largest error {error:.1e}");
}

#[test]
#[ignore = "needs the QNN libraries"]
fn the_simulator_matches_the_reference_for_a_scaled_qwen2() {
    let _alone = crate::alone();
    let scaled = json!({"prefill": 6, "context": 16, "residual_exponent": 3, "ffn_exponent": 2});
    let lowered = lower_model(&TinyGguf::qwen2(), json!({}), scaled);
    let engine = Htp::new(&lowered.profiles, &lowered.graphs);
    let error = logit_error(lowered, engine);
    assert!(error < 1e-2, "{error}");
    println!("largest error {error:.1e}");
}

/// The compiler computes norms over heads wrong for 9 to 12 tokens, unless each head is a row.
#[test]
#[ignore = "needs the QNN libraries"]
fn norms_over_heads_are_right_for_any_number_of_tokens() {
    let _alone = crate::alone();
    for prefill in [8, 9, 10, 12, 13] {
        let params = json!({"prefill": prefill, "context": 24});
        let lowered = lower_model(&TinyGguf::qwen3(), json!({}), params);
        let engine = Htp::new(&lowered.profiles, &lowered.graphs);
        let error = logit_error(lowered, engine);
        println!("{prefill} tokens: largest error {error:.1e}");
        assert!(error < 1e-2, "{prefill} tokens: {error}");
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn large_key_biases_need_centred_keys_on_the_simulator() {
    let _alone = crate::alone();
    let model = TinyGguf::qwen2().large_biases();
    let error_with = |centre: &str| {
        let lowered = lower_model(
            &model,
            json!({}),
            json!({"prefill": 6, "context": 16, "key_centre": centre}),
        );
        let engine = Htp::new(&lowered.profiles, &lowered.graphs);
        let error = logit_error(lowered, engine);
        println!("{centre}: largest error {error:.1e}");
        error
    };
    let (centred, not_centred) = (error_with("bias"), error_with("none"));
    assert!(centred < 1e-2, "{centred}");
    assert!(not_centred > 5e-2, "{not_centred}");
}

#[test]
#[ignore = "needs the QNN libraries"]
fn the_simulator_matches_the_reference_for_channel_schemes() {
    let _alone = crate::alone();
    // Each scheme is used for tensors of one kind.
    let schemes = [
        ("attn_q", "int8-channel"),
        ("attn_v", "int4-channel"),
        ("ffn_up", "lpbq-16"),
        ("ffn_down", "lpbq-64"),
    ];
    let rules = schemes.map(
        |(tensor, scheme)| json!({"match": format!("blk.*.{tensor}.weight"), "scheme": scheme}),
    );
    let requant = json!({"scheme": "lpbq-32", "override": rules});
    let lowered = lower_model(&TinyGguf::qwen2(), requant, small());
    let engine = Htp::new(&lowered.profiles, &lowered.graphs);
    let error = logit_error(lowered, engine);
    println!("largest error {error:.1e}");
    assert!(error < 1e-2, "{error}");
}
