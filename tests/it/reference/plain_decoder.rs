//! A plain decoder-only transformer in f64, one token at a time. It is slow, and shares no code
//! with the reference and the graphs.

use std::collections::BTreeMap;

use kiln::model::decoder::arch::model_facts;
use kiln::model::decoder::{ModelFacts, RopeRows};
use kiln::model::gguf::Gguf;

/// Keys and values of a layer, one entry per token.
type Cache = (Vec<Vec<f64>>, Vec<Vec<f64>>);

pub struct PlainDecoder {
    pub facts: ModelFacts,
    pub weights: BTreeMap<String, Vec<f64>>,
}

impl PlainDecoder {
    pub fn new(file: &[u8]) -> Self {
        let gguf = Gguf::parse(file).unwrap();
        let mut weights = BTreeMap::new();
        for tensor in &gguf.tensors {
            let mut values = vec![0.0; tensor.values() as usize];
            tensor.ggml.format.decode(gguf.data(tensor), &mut values);
            let values = values.into_iter().map(f64::from).collect();
            weights.insert(tensor.name.to_string(), values);
        }
        PlainDecoder {
            facts: model_facts(&gguf).unwrap(),
            weights,
        }
    }

    /// Logits after each of `tokens`.
    pub fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let mut caches = vec![(vec![], vec![]); self.facts.block_count as usize];
        let mut logits = vec![];
        for (position, token) in tokens.iter().enumerate() {
            logits.push(self.step(*token, position, &mut caches));
        }
        logits
    }

    fn step(&self, token: u32, position: usize, caches: &mut [Cache]) -> Vec<f64> {
        let hidden = self.facts.hidden as usize;
        let embedding = &self.weights["token_embd.weight"];
        let mut x = embedding[token as usize * hidden..][..hidden].to_vec();
        for (layer, (keys, values)) in caches.iter_mut().enumerate() {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let normed = self.norm(&x, &name("attn_norm"));
            let query = self.rotate(self.linear(&normed, &name("attn_q")), position);
            keys.push(self.rotate(self.linear(&normed, &name("attn_k")), position));
            values.push(self.linear(&normed, &name("attn_v")));
            add(
                &mut x,
                &self.linear(&self.attend(&query, keys, values), &name("attn_output")),
            );
            let normed = self.norm(&x, &name("ffn_norm"));
            let gate = self.linear(&normed, &name("ffn_gate"));
            let up = self.linear(&normed, &name("ffn_up"));
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let gated: Vec<f64> = (0..up.len()).map(|i| silu(gate[i]) * up[i]).collect();
            add(&mut x, &self.linear(&gated, &name("ffn_down")));
        }
        let normed = self.norm(&x, "output_norm");
        let head = match self.facts.tied_embeddings {
            true => "token_embd",
            false => "output",
        };
        self.linear(&normed, head)
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (square + f64::from(self.facts.rms_epsilon)).sqrt();
        let gamma = &self.weights[&format!("{name}.weight")];
        (0..x.len()).map(|i| x[i] * scale * gamma[i]).collect()
    }

    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        let rows = self.weights[&format!("{name}.weight")].chunks_exact(x.len());
        let mut out: Vec<f64> = rows.map(|row| dot(row, x)).collect();
        if let Some(bias) = self.weights.get(&format!("{name}.bias")) {
            add(&mut out, bias);
        }
        out
    }

    fn rotate(&self, mut heads: Vec<f64>, position: usize) -> Vec<f64> {
        let dim = self.facts.head_dim as usize;
        for head in heads.chunks_exact_mut(dim) {
            for i in 0..dim / 2 {
                let (a, b) = match self.facts.rope_rows {
                    RopeRows::Interleaved => (2 * i, 2 * i + 1),
                    RopeRows::HalfSplit => (i, i + dim / 2),
                };
                let frequency =
                    f64::from(self.facts.rope_freq_base).powf(-2.0 * i as f64 / dim as f64);
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
        heads
    }

    fn attend(&self, query: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let dim = self.facts.head_dim as usize;
        let group = (self.facts.heads / self.facts.kv_heads) as usize;
        let mut out = vec![];
        for (head, query) in query.chunks_exact(dim).enumerate() {
            let part = |token: &[f64]| token[head / group * dim..][..dim].to_vec();
            let score = |key: &Vec<f64>| dot(&part(key), query) / (dim as f64).sqrt();
            let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut mixed = vec![0.0; dim];
            for (weight, value) in weights.iter().zip(values) {
                for (mixed, value) in mixed.iter_mut().zip(part(value)) {
                    *mixed += value * weight / total;
                }
            }
            out.extend(mixed);
        }
        out
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}
