//! The tensors of a decoder, by GGUF's names. This is the only list of them.

use std::collections::BTreeMap;

use super::rotary::{RopeRows, RopeScaling};
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
    RotaryDivisors(ContextLength),
    /// A tensor of the layer of this number.
    Layer(u32, LayerTensor),
}

/// The contexts for which there are divisors of RoPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextLength {
    /// All.
    Any,
    /// Those up to a limit.
    Short,
    /// Longer ones.
    Long,
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

/// The name of the rows of q, k and v in one tensor, without its layer and suffix.
pub const FUSED_QKV: &str = "attn_qkv";

/// A tensor that a decoder computes with.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name: `blk.0.attn_q.weight`.
    pub name: String,
    /// `[rows, columns]`, or `[n]`.
    pub shape: Vec<u64>,
    /// Its role.
    pub role: Role,
    /// The tensor of the file that has its rows, alone or with other tensors.
    pub stored_in: String,
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
            Role::RotaryDivisors(ContextLength::Any) => "rope_freqs".into(),
            Role::RotaryDivisors(ContextLength::Short) => "rope_factors_short".into(),
            Role::RotaryDivisors(ContextLength::Long) => "rope_factors_long".into(),
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
        let Some(rotary) = &layer.attention.rotary else {
            continue;
        };
        let contexts: &[ContextLength] = match rotary.scaling {
            RopeScaling::Divided(_) => &[ContextLength::Any],
            RopeScaling::LongRope { .. } => &[ContextLength::Long, ContextLength::Short],
            RopeScaling::None | RopeScaling::Linear(_) | RopeScaling::Yarn { .. } => continue,
        };
        for context in contexts {
            list.add(
                Role::RotaryDivisors(*context),
                &[u64::from(rotary.dims) / 2],
            );
        }
        break;
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        list.add_layer(spec, index as u32, layer);
    }
    list.0
}

/// A tensor of a file, and the tensors that are its rows, in their order.
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// At least one.
    pub tensors: Vec<TensorSpec>,
}

impl StoredTensor {
    /// The shape of the whole.
    pub fn shape(&self) -> Vec<u64> {
        let mut shape = self.tensors[0].shape.clone();
        for tensor in &self.tensors[1..] {
            shape[0] += tensor.shape[0];
        }
        shape
    }
}

/// The tensors of a file with the decoder `spec`.
pub fn stored(spec: &DecoderSpec) -> Vec<StoredTensor> {
    let mut all: Vec<StoredTensor> = vec![];
    let mut index_by_name = BTreeMap::new();
    for tensor in tensors(spec) {
        let name = tensor.stored_in.clone();
        let index = *index_by_name.entry(name.clone()).or_insert(all.len());
        if index == all.len() {
            all.push(StoredTensor {
                name,
                tensors: vec![],
            });
        }
        all[index].tensors.push(tensor);
    }
    all
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
        self.add_rows(role, shape, role.weight());
    }

    /// Adds the matrix or the norm of `role`, which the file has in the tensor `stored_in`.
    fn add_rows(&mut self, role: Role, shape: &[u64], stored_in: String) {
        self.0.push(TensorSpec {
            name: role.weight(),
            shape: shape.to_vec(),
            role,
            stored_in,
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
            let stored_in = |name: String, suffix: &str| match attention.fused_qkv {
                true => format!("blk.{index}.{FUSED_QKV}.{suffix}"),
                false => name,
            };
            // RoPE and QK norm apply to queries and keys, not to values.
            let interleaved_heads = match norm {
                Some(_) if is_interleaved => Some(heads),
                _ => None,
            };
            self.0.push(TensorSpec {
                name: matrix.weight(),
                shape: vec![rows, hidden],
                role: matrix,
                stored_in: stored_in(matrix.weight(), "weight"),
                interleaved_heads,
            });
            if attention.qkv_bias {
                self.0.push(TensorSpec {
                    name: matrix.bias(),
                    shape: vec![rows],
                    role: matrix,
                    stored_in: stored_in(matrix.bias(), "bias"),
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
        let up = role(LayerTensor::Up).weight();
        let gate = match layer.fused_gate_up {
            true => up.clone(),
            false => role(LayerTensor::Gate).weight(),
        };
        self.add_rows(role(LayerTensor::Gate), &[ffn, hidden], gate);
        self.add_rows(role(LayerTensor::Up), &[ffn, hidden], up);
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
    fn fused_matrices_are_rows_of_one_tensor() {
        let mut spec = DecoderSpec::tiny();
        spec.layers.pop();
        spec.layers[0].attention.fused_qkv = true;
        spec.layers[0].attention.qkv_bias = true;
        spec.layers[0].fused_gate_up = true;
        let mut found = vec![];
        for tensor in stored(&spec) {
            if let [_, _, ..] = tensor.tensors[..] {
                let names: Vec<&str> = tensor.tensors.iter().map(|one| &*one.name).collect();
                found.push(format!("{} {:?} {names:?}", tensor.name, tensor.shape()));
            }
        }
        let qkv = |suffix: &str| ["q", "k", "v"].map(|what| format!("blk.0.attn_{what}.{suffix}"));
        assert_eq!(
            found,
            [
                format!("blk.0.attn_qkv.weight [16, 8] {:?}", qkv("weight")),
                format!("blk.0.attn_qkv.bias [16] {:?}", qkv("bias")),
                r#"blk.0.ffn_up.weight [24, 8] ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"]"#
                    .into(),
            ]
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
