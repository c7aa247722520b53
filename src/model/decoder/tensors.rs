//! The tensors of a decoder, by GGUF's names. This is the only list of them.

use std::collections::BTreeMap;

use super::rotary::{RopeRows, RopeScaling, Rotary};
use super::spec::{DecoderSpec, Layer, QkNorm};
use crate::model::weight::blob_owner;

/// The role of a tensor in its decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The embedding, which is also the head of a tied decoder.
    Embedding,
    /// The weight of the RMSNorm after the last layer.
    FinalNorm,
    /// The matrix of the head.
    Head,
    /// What the frequencies of RoPE are divided by. They are part of the [`DecoderSpec`].
    RotaryDivisors,
    /// A tensor of the layer of this number.
    Layer(u32, LayerTensor),
}

/// The role of a tensor in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerTensor {
    /// The weight of the RMSNorm before attention.
    AttentionNorm,
    /// The matrix or the bias of the queries.
    Query,
    /// The weight of the RMSNorm of the queries.
    QueryNorm,
    /// The matrix or the bias of the keys.
    Key,
    /// The weight of the RMSNorm of the keys.
    KeyNorm,
    /// The matrix or the bias of the values.
    Value,
    /// The output matrix of attention.
    AttentionOutput,
    /// The weight of the RMSNorm after attention.
    AttentionPostNorm,
    /// The weight of the RMSNorm before the feed-forward layer.
    FeedForwardNorm,
    /// The gate matrix of the feed-forward layer; the activation is applied to its result.
    Gate,
    /// The up matrix of the feed-forward layer.
    Up,
    /// The down matrix of the feed-forward layer.
    Down,
    /// The weight of the RMSNorm after the feed-forward layer.
    FeedForwardPostNorm,
}

/// A tensor that a decoder computes with.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name: `blk.0.attn_q.weight`.
    pub name: String,
    /// `[rows, columns]`, or `[n]`.
    pub shape: Vec<u64>,
    /// Its role.
    pub role: Role,
    /// The number of its heads, if the file has the rows of each head in interleaved order.
    pub interleaved_heads: Option<u32>,
}

impl Role {
    /// Its name without a suffix: `blk.0.attn_q`.
    pub fn stem(self) -> String {
        match self {
            Role::Embedding => "token_embd".into(),
            Role::FinalNorm => "output_norm".into(),
            Role::Head => "output".into(),
            Role::RotaryDivisors => "rope_freqs".into(),
            Role::Layer(layer, tensor) => format!("blk.{layer}.{}", tensor.stem()),
        }
    }

    /// The name of its matrix or its RMSNorm weight.
    pub fn weight(self) -> String {
        self.stem() + ".weight"
    }

    /// The name of its bias.
    pub fn bias(self) -> String {
        self.stem() + ".bias"
    }
}

impl LayerTensor {
    fn stem(self) -> &'static str {
        match self {
            LayerTensor::AttentionNorm => "attn_norm",
            LayerTensor::Query => "attn_q",
            LayerTensor::QueryNorm => "attn_q_norm",
            LayerTensor::Key => "attn_k",
            LayerTensor::KeyNorm => "attn_k_norm",
            LayerTensor::Value => "attn_v",
            LayerTensor::AttentionOutput => "attn_output",
            LayerTensor::AttentionPostNorm => "post_attention_norm",
            LayerTensor::FeedForwardNorm => "ffn_norm",
            LayerTensor::Gate => "ffn_gate",
            LayerTensor::Up => "ffn_up",
            LayerTensor::Down => "ffn_down",
            LayerTensor::FeedForwardPostNorm => "post_ffw_norm",
        }
    }
}

impl TensorSpec {
    /// Whether it is a matrix, not a vector.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}

/// Every tensor of `spec`.
pub fn tensors(spec: &DecoderSpec) -> Vec<TensorSpec> {
    let [hidden, vocab] = [spec.hidden, spec.vocab].map(u64::from);
    let mut list = List(vec![]);
    list.add(Role::Embedding, &[vocab, hidden]);
    list.add(Role::FinalNorm, &[hidden]);
    if !spec.head.tied {
        list.add(Role::Head, &[vocab, hidden]);
    }
    for layer in &spec.layers {
        if let Some(Rotary {
            scaling: RopeScaling::Divided(_),
            dims,
            ..
        }) = &layer.attention.rotary
        {
            list.add(Role::RotaryDivisors, &[u64::from(*dims) / 2]);
            break;
        }
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        list.add_layer(spec, index as u32, layer);
    }
    list.0
}

/// Every tensor of `spec`, by name.
pub fn by_name(spec: &DecoderSpec) -> BTreeMap<String, TensorSpec> {
    let mut tensors_by_name = BTreeMap::new();
    for tensor in tensors(spec) {
        tensors_by_name.insert(tensor.name.clone(), tensor);
    }
    tensors_by_name
}

/// The role of the weight that the blob `blob` is a part of: `blk.0.attn_q.weight/codes`.
pub fn role_of_blob(tensors: &BTreeMap<String, TensorSpec>, blob: &str) -> Option<Role> {
    Some(tensors.get(blob_owner(blob))?.role)
}

struct List(Vec<TensorSpec>);

impl List {
    fn add(&mut self, role: Role, shape: &[u64]) {
        self.0.push(TensorSpec {
            name: role.weight(),
            shape: shape.to_vec(),
            role,
            interleaved_heads: None,
        });
    }

    fn add_layer(&mut self, spec: &DecoderSpec, index: u32, layer: &Layer) {
        let [hidden, ffn, width] = [spec.hidden, spec.ffn, spec.head_dim].map(u64::from);
        let role = |tensor| Role::Layer(index, tensor);
        let (before, after) = (layer.norms.before(), layer.norms.after());
        let attention = &layer.attention;
        let is_interleaved = match &attention.rotary {
            Some(rotary) => rotary.layout == RopeRows::Interleaved,
            None => false,
        };

        if before {
            self.add(role(LayerTensor::AttentionNorm), &[hidden]);
        }
        for (tensor, norm, heads) in [
            (LayerTensor::Query, Some(LayerTensor::QueryNorm), spec.heads),
            (LayerTensor::Key, Some(LayerTensor::KeyNorm), spec.kv_heads),
            (LayerTensor::Value, None, spec.kv_heads),
        ] {
            let (matrix, rows) = (role(tensor), u64::from(heads) * width);
            // RoPE and QK norm apply to queries and keys, not to values.
            let interleaved_heads = match norm {
                Some(_) if is_interleaved => Some(heads),
                _ => None,
            };
            self.0.push(TensorSpec {
                name: matrix.weight(),
                shape: vec![rows, hidden],
                role: matrix,
                interleaved_heads,
            });
            if attention.qkv_bias {
                self.0.push(TensorSpec {
                    name: matrix.bias(),
                    shape: vec![rows],
                    role: matrix,
                    interleaved_heads,
                });
            }
            match (attention.qk_norm, norm) {
                (QkNorm::None, _) | (_, None) => {}
                (QkNorm::PerHead, Some(norm)) => self.add(role(norm), &[width]),
                (QkNorm::WholeRow, Some(norm)) => self.add(role(norm), &[rows]),
            }
        }
        self.add(
            role(LayerTensor::AttentionOutput),
            &[hidden, u64::from(spec.heads) * width],
        );
        if after {
            self.add(role(LayerTensor::AttentionPostNorm), &[hidden]);
        }
        if before {
            self.add(role(LayerTensor::FeedForwardNorm), &[hidden]);
        }
        self.add(role(LayerTensor::Gate), &[ffn, hidden]);
        self.add(role(LayerTensor::Up), &[ffn, hidden]);
        self.add(role(LayerTensor::Down), &[hidden, ffn]);
        if after {
            self.add(role(LayerTensor::FeedForwardPostNorm), &[hidden]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decoder::Norms;

    fn text(spec: &DecoderSpec) -> String {
        let mut text = String::new();
        for tensor in tensors(spec) {
            text.push_str(&format!("{} {:?}", tensor.name, tensor.shape));
            if let Some(heads) = tensor.interleaved_heads {
                text.push_str(&format!(" {heads}"));
            }
            text.push('\n');
        }
        text
    }

    #[test]
    fn a_plain_decoder_has_these_tensors() {
        let mut spec = DecoderSpec::tiny();
        spec.layers.pop();
        assert_eq!(
            text(&spec),
            "token_embd.weight [10, 8]\n\
             output_norm.weight [8]\n\
             blk.0.attn_norm.weight [8]\n\
             blk.0.attn_q.weight [8, 8]\n\
             blk.0.attn_k.weight [4, 8]\n\
             blk.0.attn_v.weight [4, 8]\n\
             blk.0.attn_output.weight [8, 8]\n\
             blk.0.ffn_norm.weight [8]\n\
             blk.0.ffn_gate.weight [12, 8]\n\
             blk.0.ffn_up.weight [12, 8]\n\
             blk.0.ffn_down.weight [8, 12]\n"
        );
    }

    #[test]
    fn norms_biases_and_an_untied_head_add_tensors() {
        let mut spec = DecoderSpec::tiny();
        spec.head.tied = false;
        let layer = &mut spec.layers[0];
        layer.norms = Norms::Around;
        layer.attention.qkv_bias = true;
        layer.attention.qk_norm = QkNorm::PerHead;
        layer.attention.rotary.as_mut().unwrap().layout = RopeRows::Interleaved;
        let layer = &mut spec.layers[1];
        layer.norms = Norms::After;
        layer.attention.qk_norm = QkNorm::WholeRow;
        assert_eq!(
            text(&spec),
            "token_embd.weight [10, 8]\n\
             output_norm.weight [8]\n\
             output.weight [10, 8]\n\
             blk.0.attn_norm.weight [8]\n\
             blk.0.attn_q.weight [8, 8] 2\n\
             blk.0.attn_q.bias [8] 2\n\
             blk.0.attn_q_norm.weight [4]\n\
             blk.0.attn_k.weight [4, 8] 1\n\
             blk.0.attn_k.bias [4] 1\n\
             blk.0.attn_k_norm.weight [4]\n\
             blk.0.attn_v.weight [4, 8]\n\
             blk.0.attn_v.bias [4]\n\
             blk.0.attn_output.weight [8, 8]\n\
             blk.0.post_attention_norm.weight [8]\n\
             blk.0.ffn_norm.weight [8]\n\
             blk.0.ffn_gate.weight [12, 8]\n\
             blk.0.ffn_up.weight [12, 8]\n\
             blk.0.ffn_down.weight [8, 12]\n\
             blk.0.post_ffw_norm.weight [8]\n\
             blk.1.attn_q.weight [8, 8]\n\
             blk.1.attn_q_norm.weight [8]\n\
             blk.1.attn_k.weight [4, 8]\n\
             blk.1.attn_k_norm.weight [4]\n\
             blk.1.attn_v.weight [4, 8]\n\
             blk.1.attn_output.weight [8, 8]\n\
             blk.1.post_attention_norm.weight [8]\n\
             blk.1.ffn_gate.weight [12, 8]\n\
             blk.1.ffn_up.weight [12, 8]\n\
             blk.1.ffn_down.weight [8, 12]\n\
             blk.1.post_ffw_norm.weight [8]\n"
        );
    }

    #[test]
    fn a_blob_has_the_role_of_its_tensor() {
        let all = by_name(&DecoderSpec::tiny());
        assert_eq!(
            role_of_blob(&all, "blk.1.attn_k.weight/codes"),
            Some(Role::Layer(1, LayerTensor::Key))
        );
        assert_eq!(role_of_blob(&all, "blk.2.attn_k.weight/codes"), None);
    }
}
