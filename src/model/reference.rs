//! The yardstick: a decoder in f32 by candle, which shares no line with our graphs.
//!
//! Every architecture is expressed as candle's Qwen2: a `llama` file has its query and key rows put into
//! half-split order and gets biases of zero, which changes nothing it computes.

use candle_core::{DType, Device, Error, Shape, Tensor};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use candle_nn::{Activation, Init};
use candle_transformers::models::qwen2;

use super::facts::{ModelFacts, RopeRows};
use super::fidelity;
use crate::base::{Context, Problem, Result};

/// Gives a tensor of the file by its GGUF name, row-major, exactly dequantized.
pub trait Weights: Send + Sync {
    /// All values of `name`.
    fn read(&self, name: &str) -> Result<Vec<f32>>;
}

/// A loaded model.
pub struct Reference {
    decoder: qwen2::Model,
    head: Tensor,
    vocab: usize,
}

/// One token of a greedy continuation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The most probable token.
    pub token: u32,
    /// How far its logit stands above the second's: a small gap is a coin toss.
    pub gap: f32,
}

impl Reference {
    /// Loads the model that `facts` describe, for sequences of up to `positions` tokens.
    pub fn load(facts: &ModelFacts, positions: usize, weights: &dyn Weights) -> Result<Self> {
        if facts.heads.checked_mul(facts.head_dim) != Some(facts.hidden) {
            return Err(Problem::new(
                "kiln::reference::head_dim",
                format!(
                    "{} heads of {} do not make the hidden size of {}; the reference knows no other layout",
                    facts.heads, facts.head_dim, facts.hidden
                ),
            ));
        }
        let shape = (facts.vocab as usize, facts.hidden as usize);
        let table = |name| tensor(weights.read(name)?, shape);
        let embedding = table("token_embd.weight")?;
        let head = if facts.tied_embeddings { embedding.clone() } else { table("output.weight")? };
        let backend: Box<dyn SimpleBackend> = Box::new(Renamed { facts, embedding, weights });
        let variables = VarBuilder::from_backend(backend, DType::F32, Device::Cpu);
        let decoder = qwen2::Model::new(&config(facts, positions), variables)
            .context("kiln::reference::load", || "load the reference model".into())?;
        Ok(Reference { decoder, head, vocab: facts.vocab as usize })
    }

    /// The logits after each of `tokens`, `[tokens, vocab]` row-major; nothing comes before them.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.decoder.clear_kv_cache();
        self.forward(tokens, 0).context("kiln::reference::run", || format!("run {} tokens", tokens.len()))
    }

    /// The `count` most probable tokens after `prompt`, one after the other.
    pub fn greedy(&mut self, prompt: &[u32], count: usize) -> Result<Vec<Choice>> {
        let mut logits = self.logits(prompt)?;
        let mut choices: Vec<Choice> = Vec::with_capacity(count);
        while choices.len() < count {
            if let Some(last) = choices.last() {
                let place = prompt.len() + choices.len() - 1;
                logits = self
                    .forward(&[last.token], place)
                    .context("kiln::reference::run", || format!("run the token at {place}"))?;
            }
            let row = logits.len().checked_sub(self.vocab).and_then(|start| logits.get(start..)).unwrap_or_default();
            let token = fidelity::top(row)
                .ok_or_else(|| Problem::new("kiln::reference::prompt", "there is no prompt to continue"))?;
            choices.push(Choice { token, gap: fidelity::top_gap(row) });
        }
        Ok(choices)
    }

    fn forward(&mut self, tokens: &[u32], place: usize) -> Result<Vec<f32>, Error> {
        let ids = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let hidden = self.decoder.forward(&ids, place, None)?.squeeze(0)?;
        hidden.matmul(&self.head.t()?)?.flatten_all()?.to_vec1()
    }
}

fn config(facts: &ModelFacts, positions: usize) -> qwen2::Config {
    qwen2::Config {
        vocab_size: facts.vocab as usize,
        hidden_size: facts.hidden as usize,
        intermediate_size: facts.ffn as usize,
        num_hidden_layers: facts.block_count as usize,
        num_attention_heads: facts.heads as usize,
        num_key_value_heads: facts.kv_heads as usize,
        max_position_embeddings: positions,
        // candle always applies the window; one of all positions hides nothing.
        sliding_window: positions,
        max_window_layers: 0,
        tie_word_embeddings: facts.tied_embeddings,
        rope_theta: f64::from(facts.rope_freq_base),
        rms_norm_eps: f64::from(facts.rms_epsilon),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    }
}

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    Tensor::from_vec(values, shape.clone(), &Device::Cpu)
        .context("kiln::reference::shape", || format!("shape a tensor as {shape:?}"))
}

/// The file's tensors under the names by which candle asks for them, one at a time as it asks.
struct Renamed<'a> {
    facts: &'a ModelFacts,
    embedding: Tensor,
    weights: &'a dyn Weights,
}

/// Tensors of a layer: candle's name, GGUF's.
const LAYER: [(&str, &str); 12] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.q_proj.bias", "attn_q.bias"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.k_proj.bias", "attn_k.bias"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.v_proj.bias", "attn_v.bias"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
];

fn gguf_name(name: &str) -> Option<String> {
    if name == "model.norm.weight" {
        return Some("output_norm.weight".into());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (_, gguf) = LAYER.iter().find(|(candle, _)| *candle == rest)?;
    Some(format!("blk.{layer}.{gguf}"))
}

impl Renamed<'_> {
    fn read(&self, name: &str, shape: &Shape) -> Result<Tensor> {
        let gguf = gguf_name(name)
            .ok_or_else(|| Problem::new("kiln::reference::tensor", format!("candle asks for an unknown `{name}`")))?;
        if gguf.ends_with(".bias") && !self.facts.qkv_bias {
            return tensor(vec![0.0; shape.elem_count()], shape);
        }
        let values = self.weights.read(&gguf)?;
        let rotates = [".attn_q.", ".attn_k."].iter().any(|part| gguf.contains(part));
        if rotates && self.facts.rope_rows == RopeRows::Interleaved {
            let columns = shape.dims().get(1).copied().unwrap_or(1);
            return tensor(half_split(&values, columns, self.facts.head_dim as usize), shape);
        }
        tensor(values, shape)
    }
}

/// Rows 2i and 2i+1 of each head become rows i and i + head_dim/2.
fn half_split(values: &[f32], columns: usize, head_dim: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(head_dim.max(1) * columns.max(1)) {
        for parity in 0..2 {
            head.chunks(columns.max(1)).skip(parity).step_by(2).for_each(|row| out.extend_from_slice(row));
        }
    }
    out
}

impl SimpleBackend for Renamed<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> Result<Tensor, Error> {
        if name == "model.embed_tokens.weight" {
            return Ok(self.embedding.clone());
        }
        self.read(name, &shape).map_err(Error::wrap)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor, Error> {
        Err(Error::Msg(format!("`{name}` is asked for without a shape")))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        gguf_name(name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_part_into_halves() {
        // Two heads of four rows of one column.
        let rows: Vec<f32> = (0..8).map(|row| row as f32).collect();
        assert_eq!(half_split(&rows, 1, 4), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(half_split(&rows, 2, 2), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn names_are_the_files_own() {
        assert_eq!(gguf_name("model.layers.11.mlp.up_proj.weight").unwrap(), "blk.11.ffn_up.weight");
        assert_eq!(gguf_name("model.norm.weight").unwrap(), "output_norm.weight");
        assert_eq!(gguf_name("lm_head.weight"), None);
    }
}
