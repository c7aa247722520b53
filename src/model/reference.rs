//! The reference implementation: a decoder in f32 with plain loops and matrix products, which
//! shares no code with the graphs. `tests/it/reference.rs` compares it with an f64 implementation
//! and with llama.cpp.
//!
//! It processes all texts layer by layer. Only some rows of one matrix are in memory at a time, so
//! a model may be much larger than the memory.

mod matrix;
mod operators;

use std::ops::Range;

use self::matrix::Matrix;
use self::operators::{rms_norm, rotate_half_split, rotate_interleaved, silu, softmax};
use super::decoder::RopeRows;
use super::decoder::tensors::{LayerTensor, Role};
use super::decoder::{
    Activation, Attention, DecoderSpec, Embedding, Head, Layer, Norms, QkNorm, Rotary, Window,
    not_supported, refuse_any,
};
use super::fidelity;
use crate::base::{Code, Problem, Result};

/// Weights that are in memory at a time: 16 MB, more than fits into the caches.
const WEIGHTS_IN_MEMORY: usize = 1 << 22;

/// Logits that are in memory at a time.
pub const LOGITS: usize = 20 << 20;

/// Reads the tensors of a file by their GGUF names, exactly dequantized.
pub trait Weights {
    /// The values of `rows` of tensor `name`, row-major. A vector is one row.
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>>;
}

/// A model that reads its weights when it needs them.
pub struct Reference<'a> {
    spec: &'a DecoderSpec,
    layers: Vec<LayerForm>,
    weights: &'a dyn Weights,
}

/// The name of this implementation in messages.
const REFERENCE: &str = "the reference";

/// How a layer is computed.
struct LayerForm {
    qkv_bias: bool,
    /// Rotates one head at one position by angles with these cosines and sines.
    rotate: fn(&mut [f32], &[f32], &[f32]),
    /// The angle of each pair of columns of a head at position 1.
    frequencies: Vec<f64>,
    /// The activation of the gate.
    activate: fn(f32) -> f32,
}

impl LayerForm {
    /// The form of `layer`. An error if a part is not supported here.
    fn of(layer: &Layer, spec: &DecoderSpec) -> Result<Self> {
        let Layer {
            norms,
            attention,
            activation,
            residual_scale,
        } = layer;
        let Attention {
            qkv_bias,
            qk_norm,
            rotary,
            window,
            score_scale,
            score_cap,
        } = attention;
        match norms {
            Norms::Before => {}
            Norms::After | Norms::Around => return Err(not_supported(REFERENCE, norms)),
        }
        match qk_norm {
            QkNorm::None => {}
            QkNorm::PerHead | QkNorm::WholeRow => return Err(not_supported(REFERENCE, qk_norm)),
        }
        match window {
            Window::Full => {}
            Window::Sliding(_) => return Err(not_supported(REFERENCE, window)),
        }
        refuse_any(REFERENCE, "a score scale", *score_scale)?;
        refuse_any(REFERENCE, "a soft cap of the scores", *score_cap)?;
        refuse_any(REFERENCE, "a residual scale", *residual_scale)?;
        let Some(Rotary { layout, dims, base }) = rotary else {
            return Err(not_supported(REFERENCE, "layers without RoPE"));
        };
        if *dims != spec.head_dim {
            let part = format!("RoPE of {dims} of {} columns", spec.head_dim);
            return Err(not_supported(REFERENCE, part));
        }
        let (base, columns) = (f64::from(*base), f64::from(*dims));
        let mut frequencies = vec![];
        for i in 0..dims / 2 {
            frequencies.push(base.powf(-2.0 * f64::from(i) / columns));
        }
        Ok(LayerForm {
            qkv_bias: *qkv_bias,
            rotate: match layout {
                RopeRows::Interleaved => rotate_interleaved,
                RopeRows::HalfSplit => rotate_half_split,
            },
            frequencies,
            activate: match activation {
                Activation::Silu => silu,
                Activation::GeluTanh => return Err(not_supported(REFERENCE, activation)),
            },
        })
    }

    /// Cosines and sines of the angles at the positions of `span`, `[tokens, dims / 2]`.
    fn cos_sin(&self, span: &Span) -> [Matrix; 2] {
        let mut cos = Matrix::zeros(span.tokens, self.frequencies.len());
        let mut sin = cos.clone();
        for token in 0..span.tokens {
            let position = (span.before + token) as f64;
            for (i, frequency) in self.frequencies.iter().enumerate() {
                let angle = position * frequency;
                cos.row_mut(token)[i] = angle.cos() as f32;
                sin.row_mut(token)[i] = angle.sin() as f32;
            }
        }
        [cos, sin]
    }

    /// Rotary embedding of `x`, `[tokens, head_dim]`.
    fn rotated(&self, mut x: Matrix, [cos, sin]: &[Matrix; 2]) -> Matrix {
        for token in 0..x.rows() {
            (self.rotate)(x.row_mut(token), cos.row(token), sin.row(token));
        }
        x
    }
}

/// The residual stream of a text after the last layer, `[tokens, hidden]`.
pub struct State(Matrix);

/// One token of a greedy continuation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The most probable token.
    pub token: u32,
    /// Its logit minus that of the second most probable token.
    pub gap: f32,
}

/// Consecutive tokens of a text.
struct Span {
    tokens: usize,
    /// Number of tokens before them.
    before: usize,
}

/// The keys and values of a text in a layer, `[tokens, head_dim]` for each key head.
struct KvCache {
    keys: Vec<Matrix>,
    values: Vec<Matrix>,
}

impl<'a> Reference<'a> {
    /// The model that `spec` describes. An error if a part is not supported here.
    pub fn new(spec: &'a DecoderSpec, weights: &'a dyn Weights) -> Result<Self> {
        let Embedding { scale } = spec.embedding;
        refuse_any(REFERENCE, "an embedding scale", scale)?;
        let Head {
            tied: _,
            scale,
            soft_cap,
        } = spec.head;
        refuse_any(REFERENCE, "a logit scale", scale)?;
        refuse_any(REFERENCE, "a soft cap of the logits", soft_cap)?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for layer in &spec.layers {
            layers.push(LayerForm::of(layer, spec)?);
        }
        Ok(Reference {
            spec,
            layers,
            weights,
        })
    }

    /// The states after the last layer for each of `texts`, which are independent and complete.
    /// `on_layer` is called before each layer.
    pub fn states(
        &self,
        texts: &[&[u32]],
        mut on_layer: impl FnMut(u32) -> Result<()>,
    ) -> Result<Vec<State>> {
        let mut spans = Vec::with_capacity(texts.len());
        for text in texts {
            spans.push(Span {
                tokens: text.len(),
                before: 0,
            });
        }
        let mut stream = self.embedding(&texts.concat())?;
        for (layer, form) in (0..).zip(&self.layers) {
            on_layer(layer)?;
            (stream, _) = self.layer(layer, form, &stream, &spans, None)?;
        }
        let mut states = vec![];
        let mut first = 0;
        for span in &spans {
            states.push(State(stream.some_rows(first..first + span.tokens)));
            first += span.tokens;
        }
        Ok(states)
    }

    /// Calls `on_logits` with the logits after each token of `state`, `[tokens, vocab]` row-major,
    /// some rows at a time.
    pub fn logits(
        &self,
        state: &State,
        mut on_logits: impl FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let rows = (LOGITS / self.spec.vocab.max(1) as usize).max(1);
        let tokens = state.0.rows();
        for first in (0..tokens).step_by(rows) {
            let some = state.0.some_rows(first..tokens.min(first + rows));
            let head = if self.spec.head.tied {
                Role::Embedding
            } else {
                Role::Head
            };
            let normal = self.norm(Role::FinalNorm, &some)?;
            let logits = self.linear(head, self.spec.vocab as usize, false, &normal)?;
            on_logits(logits.values())?;
        }
        Ok(())
    }

    /// The greedy continuation of `prompt`: `count` tokens, or up to the first of `stop_tokens`.
    /// `on_token` is called before each.
    pub fn greedy(
        &self,
        prompt: &[u32],
        count: usize,
        stop_tokens: &[u32],
        mut on_token: impl FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Choice>> {
        let mut past: Vec<Option<KvCache>> = vec![];
        past.resize_with(self.layers.len(), || None);
        let mut next = prompt.to_vec();
        let mut before = 0;
        let mut choices: Vec<Choice> = Vec::with_capacity(count);
        while choices.len() < count {
            on_token(choices.len())?;
            let span = Span {
                tokens: next.len(),
                before,
            };
            let spans = [span];
            let mut stream = self.embedding(&next)?;
            for (layer, form) in self.layers.iter().enumerate() {
                let past = &mut past[layer];
                let (after, mut kv_caches) =
                    self.layer(layer as u32, form, &stream, &spans, past.as_ref())?;
                stream = after;
                *past = kv_caches.pop();
            }
            let last = State(stream.some_rows(next.len() - 1..next.len()));
            let mut choice = None;
            self.logits(&last, |logits| {
                choice = fidelity::top(logits).map(|token| Choice {
                    token,
                    gap: fidelity::top_gap(logits),
                });
                Ok(())
            })?;
            let Some(choice) = choice else {
                let message = "no logit is a number";
                return Err(Problem::new(Code::ReferenceLogits, message));
            };
            choices.push(choice);
            if stop_tokens.contains(&choice.token) {
                break;
            }
            before += next.len();
            next = vec![choice.token];
        }
        Ok(choices)
    }

    /// The embedding rows of `tokens`, `[tokens, hidden]`.
    fn embedding(&self, tokens: &[u32]) -> Result<Matrix> {
        if tokens.is_empty() {
            return Err(Problem::new(
                Code::ReferencePrompt,
                "there is no text to begin with",
            ));
        }
        let (mut rows, table) = (vec![], Role::Embedding.weight());
        for token in tokens {
            let row = *token as usize;
            rows.extend(self.weights.rows(&table, row..row + 1)?);
        }
        to_matrix(&table, tokens.len(), self.spec.hidden as usize, rows)
    }

    /// The residual stream after a layer, and the KV cache of each text. The rows of `stream` are
    /// those of all `spans` in order. `past` is the KV cache before the span, if there is only one.
    fn layer(
        &self,
        layer: u32,
        form: &LayerForm,
        stream: &Matrix,
        spans: &[Span],
        past: Option<&KvCache>,
    ) -> Result<(Matrix, Vec<KvCache>)> {
        let DecoderSpec {
            heads,
            kv_heads,
            head_dim,
            hidden,
            ffn,
            ..
        } = *self.spec;
        let [heads, kv_heads, head_dim, hidden, ffn] =
            [heads, kv_heads, head_dim, hidden, ffn].map(|size| size as usize);
        let role = |tensor| Role::Layer(layer, tensor);
        let (mixed, kv_caches) = {
            let bias = form.qkv_bias;
            let x = self.norm(role(LayerTensor::AttentionNorm), stream)?;
            let q = self.linear(role(LayerTensor::Query), heads * head_dim, bias, &x)?;
            let k = self.linear(role(LayerTensor::Key), kv_heads * head_dim, bias, &x)?;
            let v = self.linear(role(LayerTensor::Value), kv_heads * head_dim, bias, &x)?;
            self.attention(form, [&q, &k, &v], spans, past)
        };
        let mut stream = stream.clone();
        stream.add(&self.linear(role(LayerTensor::AttentionOutput), hidden, false, &mixed)?);
        drop(mixed);

        let x = self.norm(role(LayerTensor::FeedForwardNorm), &stream)?;
        let mut gate = self.linear(role(LayerTensor::Gate), ffn, false, &x)?;
        let up = self.linear(role(LayerTensor::Up), ffn, false, &x)?;
        gate.for_each_row(|row, gate| {
            for (gate, up) in gate.iter_mut().zip(up.row(row)) {
                *gate = (form.activate)(*gate) * up;
            }
        });
        stream.add(&self.linear(role(LayerTensor::Down), hidden, false, &gate)?);
        Ok((stream, kv_caches))
    }

    /// The weighted values of all heads, `[tokens, heads * head_dim]`, and the KV cache of each
    /// text.
    fn attention(
        &self,
        form: &LayerForm,
        [q, k, v]: [&Matrix; 3],
        spans: &[Span],
        past: Option<&KvCache>,
    ) -> (Matrix, Vec<KvCache>) {
        let [heads, kv_heads, dim] =
            [self.spec.heads, self.spec.kv_heads, self.spec.head_dim].map(|size| size as usize);
        // Query heads that share a key head are adjacent.
        let group = heads.checked_div(kv_heads).unwrap_or(0);
        let columns = |head: usize| head * dim..(head + 1) * dim;
        let mut mixed = Matrix::zeros(q.rows(), heads * dim);
        let mut kv_caches = vec![];
        let mut first = 0;
        for span in spans {
            let rows = first..first + span.tokens;
            let cos_sin = form.cos_sin(span);
            let mut kv_cache = KvCache {
                keys: vec![],
                values: vec![],
            };
            for key_head in 0..kv_heads {
                let (mut keys, mut values) = match past {
                    Some(past) => (past.keys[key_head].clone(), past.values[key_head].clone()),
                    None => (Matrix::zeros(0, dim), Matrix::zeros(0, dim)),
                };
                keys.append(&form.rotated(k.block(rows.clone(), columns(key_head)), &cos_sin));
                values.append(&v.block(rows.clone(), columns(key_head)));
                let query_heads = key_head * group..(key_head + 1) * group;
                let mut queries = Matrix::zeros(0, dim);
                for head in query_heads.clone() {
                    queries.append(&form.rotated(q.block(rows.clone(), columns(head)), &cos_sin));
                }
                let mut shares = queries.times_transposed(&keys);
                shares.for_each_row(|row, scores| {
                    // A token attends to itself and to those before it.
                    let count = span.before + row % span.tokens + 1;
                    let (attended, masked) = scores.split_at_mut(count);
                    for score in &mut *attended {
                        *score *= (dim as f64).sqrt().recip() as f32;
                    }
                    softmax(attended);
                    masked.fill(0.0);
                });
                let mix = shares.times(&values);
                for (index, head) in query_heads.enumerate() {
                    for token in 0..span.tokens {
                        mixed.row_mut(first + token)[columns(head)]
                            .copy_from_slice(mix.row(index * span.tokens + token));
                    }
                }
                kv_cache.keys.push(keys);
                kv_cache.values.push(values);
            }
            kv_caches.push(kv_cache);
            first += span.tokens;
        }
        (mixed, kv_caches)
    }

    fn norm(&self, role: Role, x: &Matrix) -> Result<Matrix> {
        let gamma = self.vector(&role.weight(), x.columns())?;
        Ok(rms_norm(x, &gamma, self.spec.rms_epsilon))
    }

    /// `x W^T`, plus the bias if there is one. Reads some rows of the matrix at a time.
    fn linear(&self, role: Role, rows: usize, has_bias: bool, x: &Matrix) -> Result<Matrix> {
        let columns = x.columns();
        let step = (WEIGHTS_IN_MEMORY / columns.max(1)).max(1);
        let weight = role.weight();
        let mut y = Matrix::zeros(x.rows(), rows);
        for first in (0..rows).step_by(step) {
            let some = first..rows.min(first + step);
            let values = self.weights.rows(&weight, some.clone())?;
            let weights = to_matrix(&weight, some.len(), columns, values)?;
            x.times_transposed_into(&weights, &mut y, first);
        }
        if has_bias {
            let bias = self.vector(&role.bias(), rows)?;
            y.for_each_row(|_, row| {
                for (y, bias) in row.iter_mut().zip(&bias) {
                    *y += bias;
                }
            });
        }
        Ok(y)
    }

    /// The values of a vector.
    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let values = self.weights.rows(name, 0..1)?;
        Ok(to_matrix(name, 1, length, values)?.into_values())
    }
}

/// The values of tensor `name` as a matrix. An error if their number is wrong.
fn to_matrix(name: &str, rows: usize, columns: usize, values: Vec<f32>) -> Result<Matrix> {
    let found = values.len();
    let Some(matrix) = Matrix::new(rows, columns, values) else {
        let message = format!("`{name}`: expected {rows} rows of {columns} values, found {found}");
        return Err(Problem::new(Code::ReferenceTensor, message));
    };
    Ok(matrix)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoWeights;

    impl Weights for NoWeights {
        fn rows(&self, name: &str, _: Range<usize>) -> Result<Vec<f32>> {
            panic!("`{name}` is read");
        }
    }

    #[test]
    fn unsupported_parts_are_refused_by_name() {
        assert!(Reference::new(&DecoderSpec::tiny(), &NoWeights).is_ok());
        for (part, spec) in DecoderSpec::variants() {
            let problem = Reference::new(&spec, &NoWeights).err().unwrap();
            assert_eq!(
                problem.message,
                format!("the reference does not support {part}")
            );
        }
    }
}
