//! From a GGUF to device ops, computed: the logits must be the reference's, which shares no line
//! with the graphs. In f32 by an interpreter of device ops, always; on the simulator of the real
//! device, where it is at hand.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::interpreter::Interpreter;
use crate::support::quantize::Quant;
use crate::support::restore;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::Folder;
use half::f16;
use kiln::action::{Inputs, Manifest, Stage};
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

/// What the stages make of a tiny model.
struct Made {
    facts: DecoderSpec,
    plain: Plain,
    profiles: [GraphFacts; 2],
    graphs: [DeviceGraph; 2],
}

/// Weights as `dequant` gives them, and how long a row of each is.
struct Plain(BTreeMap<String, (usize, Vec<f32>)>);

impl Weights for Plain {
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let (columns, values) = &self.0[name];
        Ok(values[rows.start * columns..rows.end * columns].to_vec())
    }
}

fn make(model: &TinyGguf, requant: Value, graph: Value) -> Made {
    let scheme = requant["scheme"].as_str().unwrap_or("native");
    let rounded = scheme.contains("channel") || scheme.contains("lpbq");
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let registry = kiln::stages::all();
    let run = |kind: &str, params: Value, slots: &[(&str, &Manifest)]| {
        let stage: &dyn Stage = registry.get(kind).unwrap();
        let slot = |(slot, given): &(&str, &Manifest)| {
            (slot.to_string(), vec![(slot.to_string(), (*given).clone())])
        };
        let inputs = Inputs {
            slots: slots.iter().map(slot).collect(),
            ..Inputs::default()
        };
        folder.run_stage(stage, params, &inputs).unwrap()
    };
    let file = Manifest {
        parts: [(
            "tiny.gguf".parse().unwrap(),
            folder.part(&model.write(), json!({})),
        )]
        .into(),
    };
    let model = run("inspect", json!({}), &[("gguf", &file)]);
    let weights = run("requant", requant, &[("tensors", &model)]);
    let plain = run("dequant", json!({}), &[("model", &model)]);
    let onnx = run("graph", graph, &[("model", &model), ("weights", &weights)]);
    // A scheme that rounds is held against the values it rounded to.
    let of = if rounded { &weights } else { &plain };
    let weight = |name: &String| (columns(of, name), restore::weight(&folder, of, name));
    let plain = restore::names(of)
        .into_iter()
        .map(|name| (name.clone(), weight(&name)));
    let files = ["prefill.onnx", "decode.onnx"].map(|file| onnx.part(file).unwrap());
    let facts: DecoderSpec = model.part("model.json").unwrap().facts.read().unwrap();
    Made {
        facts,
        plain: Plain(plain.collect()),
        profiles: files.map(|file| file.facts.read().unwrap()),
        graphs: files.map(|file| {
            let model = decode(&folder.bytes(file)).unwrap();
            lower(&model, &|location| Ok(folder.bytes(onnx.part(location)?))).unwrap()
        }),
    }
}

/// How long a row of a weight is; a vector is one row.
fn columns(weights: &Manifest, name: &str) -> usize {
    let blob = |what: &str| weights.get(&format!("{name}/{what}"));
    let part = blob("codes").or(blob("values")).unwrap();
    let facts: WeightFacts = part.facts.read().unwrap();
    *facts.shape.last().unwrap() as usize
}

/// The largest difference to the reference's logits, as a share of the largest of them: of a
/// prefill, and of decode steps after part of it.
fn error(made: Made, engine: impl Engine + 'static) -> f32 {
    let tokens: Vec<u32> = (0..made.profiles[0].tokens)
        .map(|i| (i * 37 + 11) % made.facts.vocab)
        .collect();
    let reference = Reference::new(&made.facts, &made.plain).unwrap();
    let [state] = &reference.states(&[&tokens], |_| Ok(())).unwrap()[..] else {
        panic!()
    };
    let mut expected = vec![];
    let mut hold = |some: &[f32]| {
        expected.extend_from_slice(some);
        Ok(())
    };
    reference.logits(state, &mut hold).unwrap();
    let vocab = made.facts.vocab as usize;
    let mut decoder = Decoder {
        engine: Box::new(engine),
        model: made.facts,
    };
    let (logits, mut cache) = decoder.start(&tokens).unwrap();
    let mut worst = difference(&logits, &expected);
    let held = tokens.len() - 2;
    cache.truncate(held);
    for (token, row) in tokens.iter().zip(expected.chunks(vocab)).skip(held) {
        worst = worst.max(difference(&decoder.step(*token, &mut cache).unwrap(), row));
    }
    worst
}

fn difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f32, |top, x| top.max(x.abs()));
    let worst = got
        .iter()
        .zip(expected)
        .map(|(x, y)| (x - y).abs())
        .fold(0f32, |top, x| if x <= top { top } else { x });
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
        let number = |tensor: &Tensor| match tensor {
            Tensor::I32(_, ids) => ids.iter().map(|&id| id as f32).collect(),
            Tensor::F32(_, values) => values.clone(),
        };
        let inputs = inputs
            .iter()
            .map(|(name, tensor)| (name.clone(), number(tensor)))
            .collect();
        Ok(self.1[graph as usize].run(&inputs))
    }
}

#[track_caller]
fn check(model: &TinyGguf, requant: Value, graph: Value) {
    let mut made = make(model, requant, graph);
    let engine = Interpreted(
        made.profiles.clone(),
        std::mem::take(&mut made.graphs).map(Interpreter::new),
    );
    let error = error(made, engine);
    println!("largest error {error:.1e}");
    assert!(error < 2e-3, "{error}");
}

fn small() -> Value {
    json!({"prefill": 6, "context": 16})
}

#[test]
fn llama_in_q4_1_with_its_rows_reordered_and_a_tied_head() {
    check(
        &TinyGguf::llama().tensor_type("token_embd.weight", Quant::Q8_0),
        json!({}),
        small(),
    );
}

#[test]
fn qwen2_in_q4_0_with_biases() {
    check(&TinyGguf::qwen2(), json!({}), small());
}

#[test]
fn an_embedding_with_offsets() {
    check(&TinyGguf::llama(), json!({}), small());
}

#[test]
fn plain_halves() {
    check(&TinyGguf::llama(), json!({"scheme": "f16"}), small());
}

#[test]
fn qwen2_with_large_key_biases() {
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
}

#[test]
fn gains_change_nothing() {
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
            optimization: 3,
            vtcm_mb: 8,
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
        let bytes = |tensor: &Tensor| -> Vec<u8> {
            match tensor {
                Tensor::I32(_, ids) => ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
                Tensor::F32(_, values) => values
                    .iter()
                    .flat_map(|x| f16::from_f32(*x).to_le_bytes())
                    .collect(),
            }
        };
        let inputs = inputs
            .iter()
            .map(|(name, tensor)| (name.clone(), bytes(tensor)))
            .collect();
        let outputs = self
            .context
            .execute(&self.graphs[graph as usize], &inputs)?;
        let floats = |bytes: Vec<u8>| {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect()
        };
        Ok(outputs
            .into_iter()
            .map(|(name, bytes)| (name, floats(bytes)))
            .collect())
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn the_simulator_computes_a_llama() {
    let made = make(
        &TinyGguf::llama().tensor_type("token_embd.weight", Quant::Q8_0),
        json!({}),
        small(),
    );
    let engine = Htp::new(&made.profiles, &made.graphs);
    let error = error(made, engine);
    assert!(error < 1e-2, "{error}");
    println!("largest error {error:.1e}");
}

#[test]
#[ignore = "needs the QNN libraries"]
fn the_simulator_computes_a_scaled_qwen2() {
    let scaled = json!({"prefill": 6, "context": 16, "residual_exponent": 3, "ffn_exponent": 2});
    let made = make(&TinyGguf::qwen2(), json!({}), scaled);
    let engine = Htp::new(&made.profiles, &made.graphs);
    let error = error(made, engine);
    assert!(error < 1e-2, "{error}");
    println!("largest error {error:.1e}");
}

#[test]
#[ignore = "needs the QNN libraries"]
fn the_simulator_computes_large_key_biases_only_if_keys_are_centred() {
    let model = TinyGguf::qwen2().large_biases();
    let error = |centre: &str| {
        let made = make(
            &model,
            json!({}),
            json!({"prefill": 6, "context": 16, "key_centre": centre}),
        );
        let engine = Htp::new(&made.profiles, &made.graphs);
        let error = error(made, engine);
        println!("{centre}: largest error {error:.1e}");
        error
    };
    let (centred, as_they_are) = (error("bias"), error("none"));
    assert!(centred < 1e-2, "{centred}");
    assert!(as_they_are > 5e-2, "{as_they_are}");
}

#[test]
#[ignore = "needs the QNN libraries"]
fn the_simulator_computes_schemes_by_channel() {
    // Each in the tensors of another kind.
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
    let made = make(&TinyGguf::qwen2(), requant, small());
    let engine = Htp::new(&made.profiles, &made.graphs);
    let error = error(made, engine);
    println!("largest error {error:.1e}");
    assert!(error < 1e-2, "{error}");
}
