//! Where a decoder is cut: into shards of whole layers, each a graph of its own.

use serde::{Deserialize, Serialize};

use super::facts::{ModelFacts, in_layer};
use crate::base::{Problem, Result};

/// Some layers of a decoder, in a row. The first shard has the embedding too, the last the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which of the shards it is, from 1.
    pub part: u32,
    /// How many there are.
    pub of: u32,
    /// Its first layer.
    pub first: u32,
    /// The layer after its last.
    pub end: u32,
}

/// How long an embedding and a head take to compile, beside as many weights of a layer: a table is only copied, 8-bit blocks take
/// a little longer than 4-bit ones. Measured at 1.5 B weights: 15 s, 56 s and 47 s.
const EMBEDDING: f64 = 0.3;
const HEAD: f64 = 1.2;

impl Shard {
    /// All of `model`.
    pub fn whole(model: &ModelFacts) -> Self {
        Shard { part: 1, of: 1, first: 0, end: model.block_count }
    }

    /// `model` in so many shards that take about as long to compile. Where they are cut depends on the shapes of the weights alone: a
    /// layer that is held in another way stays in its shard. Refused: more shards than layers.
    pub fn cut(model: &ModelFacts, count: u32) -> Result<Vec<Self>> {
        let layers = model.block_count;
        if !(1..=layers).contains(&count) {
            return Err(Problem::new("kiln::shards::count", format!("{layers} layers make no {count} shards"))
                .help(format!("each shard takes a layer at least: `shards` goes from 1 to {layers}")));
        }
        let [hidden, ffn, vocab] = [model.hidden, model.ffn, model.vocab].map(f64::from);
        let [queries, keys] = [model.heads, model.kv_heads].map(|heads| f64::from(heads) * f64::from(model.head_dim));
        let layer = hidden * (2.0 * queries + 2.0 * keys + 3.0 * ffn);
        let [embedding, head] = [EMBEDDING, HEAD].map(|share| share * hidden * vocab);
        let total = f64::from(layers) * layer + embedding + head;
        let before = |part: u32| match part {
            0 => 0,
            part if part == count => layers,
            part => {
                let here = (total * f64::from(part) / f64::from(count) - embedding) / layer;
                (here.round() as u32).clamp(part, layers - (count - part))
            }
        };
        Ok((0..count)
            .map(|part| Shard { part: part + 1, of: count, first: before(part), end: before(part + 1) })
            .collect())
    }

    /// Whether it begins with the embedding.
    pub fn has_embedding(&self) -> bool {
        self.part == 1
    }

    /// Whether it ends with the head.
    pub fn has_head(&self) -> bool {
        self.part == self.of
    }

    /// Whether it computes with the tensor `name` of `model`.
    pub fn reads(&self, name: &str, model: &ModelFacts) -> bool {
        match in_layer(name) {
            Some((layer, _)) => layer.parse().is_ok_and(|layer| (self.first..self.end).contains(&layer)),
            None if name.starts_with("token_embd.") => self.has_embedding() || self.has_head() && model.tied_embeddings,
            None => self.has_head(),
        }
    }

    /// The folder of what is made of it: `1-of-4`; none if it is the whole.
    pub fn folder(&self) -> String {
        if self.of == 1 { String::new() } else { format!("{}-of-{}", self.part, self.of) }
    }

    /// What the file of its graph `role` is called, but for the ending: `prefill-1-of-4`, or `prefill` if it is the whole.
    pub fn graph_stem(&self, role: &str) -> String {
        if self.of == 1 { role.into() } else { format!("{role}-{}", self.folder()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::RopeRows;

    fn model() -> ModelFacts {
        ModelFacts {
            architecture: "qwen2".into(),
            block_count: 28,
            hidden: 1536,
            ffn: 8960,
            heads: 12,
            kv_heads: 2,
            head_dim: 128,
            vocab: 151_936,
            context_length: 131_072,
            rms_epsilon: 1e-6,
            rope_freq_base: 10000.0,
            rope_rows: RopeRows::HalfSplit,
            qkv_bias: true,
            tied_embeddings: false,
        }
    }

    #[test]
    fn shards_take_about_as_long() {
        let cut = |count| -> Vec<_> {
            Shard::cut(&model(), count).unwrap().iter().map(|shard| shard.end - shard.first).collect()
        };
        // The embedding takes as long as one and a half layers, the head as six.
        assert_eq!(cut(1), [28]);
        assert_eq!(cut(2), [16, 12]);
        assert_eq!(cut(4), [7, 9, 9, 3]);
        assert_eq!(cut(28), [1; 28]);
        assert!(Shard::cut(&model(), 29).is_err() && Shard::cut(&model(), 0).is_err());
    }

    #[test]
    fn a_tensor_is_read_where_its_layer_is() {
        let shards = Shard::cut(&model(), 4).unwrap();
        let check = |name: &str, tied: bool, expected: &[u32]| {
            let model = ModelFacts { tied_embeddings: tied, ..model() };
            let readers: Vec<u32> =
                shards.iter().filter(|shard| shard.reads(name, &model)).map(|shard| shard.part).collect();
            assert_eq!(readers, expected, "{name}");
        };
        check("blk.6.ffn_down.weight", false, &[1]);
        check("blk.7.attn_q.bias", false, &[2]);
        check("token_embd.weight", false, &[1]);
        check("token_embd.weight", true, &[1, 4]);
        check("output.weight", false, &[4]);
        check("output_norm.weight", true, &[4]);
    }
}
