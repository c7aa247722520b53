//! Tiny models in the form that `inspect` and `requant` write: random weights in every encoding.

use kiln::action::{Inputs, Manifest, Part, PartName};
use kiln::model::decoder::{ModelFacts, RopeRows};
use kiln::model::weight::{Element, WeightEncoding, WeightFacts};
use serde_json::json;

use super::quantize::{Quant, encode};
use super::tiny_gguf::Random;
use super::workspace::{Folder, inputs};

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q8_0,
    Q6_K,
}

/// A tiny model: hidden 64, 4 heads over 2, ffn 96, vocabulary 70, two layers.
#[derive(Clone)]
pub struct TinyWeights {
    pub facts: ModelFacts,
    pub stored: fn(&str) -> Stored,
}

impl TinyWeights {
    /// llama with all matrices in Q4_1, the embedding (and head) in Q8_0.
    pub fn llama() -> Self {
        let facts = ModelFacts {
            architecture: "llama".into(),
            block_count: 2,
            hidden: 64,
            ffn: 96,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab: 70,
            context_length: 512,
            rms_epsilon: 1e-5,
            rope_freq_base: 10000.0,
            rope_rows: RopeRows::Interleaved,
            qkv_bias: false,
            tied_embeddings: true,
            structure: None,
        };
        TinyWeights {
            facts,
            stored: |name| {
                if name.starts_with("token_embd") {
                    Stored::Q8_0
                } else {
                    Stored::Q4_1
                }
            },
        }
    }

    /// qwen2 with biases, a separate head, and every encoding in some tensor.
    pub fn qwen2() -> Self {
        let mut model = TinyWeights::llama();
        model.facts.architecture = "qwen2".into();
        model.facts.rope_rows = RopeRows::HalfSplit;
        model.facts.qkv_bias = true;
        model.facts.tied_embeddings = false;
        model.stored = |name| match name.split('.').rev().nth(1) {
            Some("attn_q") => Stored::F16,
            Some("attn_k" | "token_embd") => Stored::Q4_1,
            Some("attn_v") => Stored::F32,
            Some("ffn_down" | "output") => Stored::Q6_K,
            Some("ffn_up") => Stored::Q8_0,
            _ => Stored::Q4_0,
        };
        model
    }

    /// The inputs of a stage with the slots `model` and `weights`.
    pub fn inputs(&self, folder: &Folder) -> Inputs {
        let model_json = serde_json::to_value(&self.facts).unwrap();
        let mut model = Manifest::default();
        model.parts.insert(
            name("model.json"),
            folder.part(model_json.to_string().as_bytes(), model_json),
        );
        let mut weights = Manifest::default();
        for (tensor, shape) in self.tensors() {
            for (blob, part) in self.weight(folder, &tensor, &shape) {
                weights
                    .parts
                    .insert(name(&format!("{tensor}/{blob}")), part);
            }
        }
        inputs(&[("model", &model), ("weights", &weights)])
    }

    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let f = &self.facts;
        let [hidden, ffn, vocab] = [f.hidden, f.ffn, f.vocab].map(u64::from);
        let (q, kv) = (
            u64::from(f.heads * f.head_dim),
            u64::from(f.kv_heads * f.head_dim),
        );
        let mut all = vec![
            ("token_embd.weight".to_string(), vec![vocab, hidden]),
            ("output_norm.weight".into(), vec![hidden]),
        ];
        if !f.tied_embeddings {
            all.push(("output.weight".into(), vec![vocab, hidden]));
        }
        for layer in 0..f.block_count {
            let mut add = |name: &str, shape| all.push((format!("blk.{layer}.{name}"), shape));
            for (name, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                add(&format!("{name}.weight"), vec![rows, hidden]);
                if f.qkv_bias {
                    add(&format!("{name}.bias"), vec![rows]);
                }
            }
            add("attn_output.weight", vec![hidden, q]);
            add("ffn_gate.weight", vec![ffn, hidden]);
            add("ffn_up.weight", vec![ffn, hidden]);
            add("ffn_down.weight", vec![hidden, ffn]);
            add("attn_norm.weight", vec![hidden]);
            add("ffn_norm.weight", vec![hidden]);
        }
        all
    }

    fn weight(&self, folder: &Folder, tensor: &str, shape: &[u64]) -> Vec<(&'static str, Part)> {
        let mut random = Random::of(tensor, 1);
        let count = shape.iter().product::<u64>() as usize;
        let columns = match *shape {
            [_, columns] => columns,
            _ => {
                let centre = if tensor.ends_with("norm.weight") {
                    1.0
                } else {
                    0.0
                };
                let value = |_| centre + 0.2 * random.normal();
                let values: Vec<f32> = (0..count).map(value).collect();
                return parts(folder, shape, plain(Element::F32), vec![f32s(&values)]);
            }
        };
        let spread = 1.0 / (columns as f32).sqrt();
        let mut numbers = |count: usize, spread: f32| -> Vec<f32> {
            (0..count).map(|_| spread * random.normal()).collect()
        };
        let stored = (self.stored)(tensor);
        let blocks = |codes, block, scales, offsets| {
            WeightEncoding::blocks(codes, block, scales, offsets, columns)
        };
        let encoding = match stored {
            Stored::F32 => plain(Element::F32),
            Stored::F16 => plain(Element::F16),
            Stored::Q4_0 => blocks(Element::Int4, 32, Element::F16, None),
            Stored::Q4_1 => blocks(Element::Uint4, 32, Element::F16, Some(Element::F16)),
            Stored::Q8_0 => blocks(Element::Int8, 32, Element::F16, None),
            Stored::Q6_K => blocks(Element::Int8, 16, Element::F32, None),
        };
        let codes = match stored {
            Stored::F32 => {
                return parts(folder, shape, encoding, vec![f32s(&numbers(count, spread))]);
            }
            Stored::F16 => {
                return parts(folder, shape, encoding, vec![f16s(&numbers(count, spread))]);
            }
            Stored::Q4_0 | Stored::Q4_1 => nibbles(&numbers(count, 100.0)),
            Stored::Q8_0 | Stored::Q6_K => numbers(count, 60.0)
                .iter()
                .map(|x| *x as i8 as u8)
                .collect(),
        };
        let steps = if encoding.main_element().bits() == 4 {
            5.0
        } else {
            60.0
        };
        let block = encoding.block(columns).unwrap() as usize;
        let scales = numbers(count / block, spread / steps);
        let mut blobs = vec![codes];
        blobs.push(match stored {
            Stored::Q6_K => f32s(&scales),
            _ => f16s(&scales),
        });
        if stored == Stored::Q4_1 {
            let offsets: Vec<f32> = scales.iter().map(|d| -7.5 * d).collect();
            blobs.push(f16s(&offsets));
        }
        parts(folder, shape, encoding, blobs)
    }
}

fn plain(element: Element) -> WeightEncoding {
    WeightEncoding::Plain { element }
}

/// The parts of a weight with these blobs.
fn parts(
    folder: &Folder,
    shape: &[u64],
    encoding: WeightEncoding,
    blobs: Vec<Vec<u8>>,
) -> Vec<(&'static str, Part)> {
    let error = json!({"source": "F32", "scheme": "made up", "exact": true, "max_error": 0.0});
    let mut parts = vec![];
    for (spec, blob) in encoding.parts(shape).unwrap().into_iter().zip(blobs) {
        let is_main = spec.part == encoding.main_part();
        let facts = WeightFacts {
            encoding,
            part: spec.part,
            shape: shape.into(),
            error: match is_main {
                true => Some(serde_json::from_value(error.clone()).unwrap()),
                false => None,
            },
        };
        let facts = serde_json::to_value(&facts).unwrap();
        parts.push((spec.part.name(), folder.part(&blob, facts)));
    }
    parts
}

fn name(text: &str) -> PartName {
    PartName::new(text).unwrap()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    encode(Quant::F32, values)
}

fn f16s(values: &[f32]) -> Vec<u8> {
    encode(Quant::F16, values)
}

fn nibbles(values: &[f32]) -> Vec<u8> {
    let byte = |pair: &[f32]| (pair[0] as i8 as u8 & 15) | (pair[1] as i8 as u8) << 4;
    values.chunks(2).map(byte).collect()
}
