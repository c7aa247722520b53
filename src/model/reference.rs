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
use self::operators::{
    gelu_tanh, rms_norm, rotate_half_split, rotate_interleaved, silu, soft_cap, softmax,
};
use super::decoder::RopeRows;
use super::decoder::tensors::{LayerTensor, Role};
use super::decoder::{
    Activation, Attention, DecoderSpec, Embedding, Head, Layer, Norms, QkNorm, Rotary, Window,
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

/// How a layer is computed.
struct LayerForm {
    norms: Norms,
    qkv_bias: bool,
    qk_norm: QkNorm,
    rotation: Option<Rotation>,
    /// How many tokens a token attends to, itself included.
    window: usize,
    score_scale: f32,
    score_cap: Option<f32>,
    /// The activation of the gate.
    activate: fn(f32) -> f32,
    residual_scale: Option<f32>,
}

/// Rotary embedding.
struct Rotation {
    /// Rotates one head at one position by angles with these cosines and sines.
    rotate: fn(&mut [f32], &[f32], &[f32]),
    /// The angle of each pair of columns of a head at position 1.
    frequencies: Vec<f64>,
    /// The factor of cosines and sines.
    magnitude: f64,
}

impl LayerForm {
    fn of(layer: &Layer, spec: &DecoderSpec, context: u32) -> Self {
        let Layer {
            norms,
            attention,
            activation,
            // `inspect` cuts it.
            fused_gate_up: _,
            residual_scale,
        } = layer;
        let Attention {
            qkv_bias,
            fused_qkv: _,
            qk_norm,
            rotary,
            window,
            score_scale,
            score_cap,
        } = attention;
        LayerForm {
            norms: *norms,
            qkv_bias: *qkv_bias,
            qk_norm: *qk_norm,
            rotation: rotary.as_ref().map(|rotary| Rotation::of(rotary, context)),
            window: match window {
                Window::Full => usize::MAX,
                Window::Sliding(tokens) => *tokens as usize,
            },
            score_scale: match score_scale {
                Some(scale) => *scale,
                None => f64::from(spec.head_dim).sqrt().recip() as f32,
            },
            score_cap: *score_cap,
            activate: match activation {
                Activation::Silu => silu,
                Activation::GeluTanh => gelu_tanh,
            },
            residual_scale: *residual_scale,
        }
    }

    /// Rotary embedding of `x`, `[tokens, head_dim]`, by the angles of [`Rotation::cos_sin`].
    fn rotated(&self, mut x: Matrix, cos_sin: &Option<[Matrix; 2]>) -> Matrix {
        if let (Some(rotation), Some([cos, sin])) = (&self.rotation, cos_sin) {
            for token in 0..x.rows() {
                let head = &mut x.row_mut(token)[..2 * cos.columns()];
                (rotation.rotate)(head, cos.row(token), sin.row(token));
            }
        }
        x
    }
}

impl Rotation {
    fn of(rotary: &Rotary, context: u32) -> Self {
        let Rotary {
            layout,
            dims,
            base,
            // It is in the divisors.
            scaling: _,
            magnitude,
        } = rotary;
        let (base, columns) = (f64::from(*base), f64::from(*dims));
        let mut frequencies = vec![];
        for (i, divisor) in rotary.divisors(context).into_iter().enumerate() {
            frequencies.push(base.powf(-2.0 * i as f64 / columns) / divisor);
        }
        Rotation {
            rotate: match layout {
                RopeRows::Interleaved => rotate_interleaved,
                RopeRows::HalfSplit => rotate_half_split,
            },
            frequencies,
            magnitude: f64::from(magnitude.unwrap_or(1.0)),
        }
    }

    /// Cosines and sines of the angles at the positions of `span`, `[tokens, dims / 2]`.
    fn cos_sin(&self, span: &Span) -> [Matrix; 2] {
        let mut cos = Matrix::zeros(span.tokens, self.frequencies.len());
        let mut sin = cos.clone();
        for token in 0..span.tokens {
            let position = (span.before + token) as f64;
            for (i, frequency) in self.frequencies.iter().enumerate() {
                let angle = position * frequency;
                cos.row_mut(token)[i] = (angle.cos() * self.magnitude) as f32;
                sin.row_mut(token)[i] = (angle.sin() * self.magnitude) as f32;
            }
        }
        [cos, sin]
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
    /// The model that `spec` describes, opened with a `context` of so many tokens.
    pub fn new(spec: &'a DecoderSpec, weights: &'a dyn Weights, context: u32) -> Self {
        let mut layers = Vec::with_capacity(spec.layers.len());
        for layer in &spec.layers {
            layers.push(LayerForm::of(layer, spec, context));
        }
        Reference {
            spec,
            layers,
            weights,
        }
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
        let Head {
            tied,
            scale,
            soft_cap: cap,
        } = self.spec.head;
        let rows = (LOGITS / self.spec.vocab.max(1) as usize).max(1);
        let tokens = state.0.rows();
        for first in (0..tokens).step_by(rows) {
            let some = state.0.some_rows(first..tokens.min(first + rows));
            let head = if tied { Role::Embedding } else { Role::Head };
            let normal = self.norm(Role::FinalNorm, &some)?;
            let mut logits = self.linear(head, self.spec.vocab as usize, false, &normal)?;
            logits.for_each_row(|_, row| {
                for logit in row {
                    *logit = soft_cap(*logit * scale.unwrap_or(1.0), cap);
                }
            });
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
        let Embedding { scale } = self.spec.embedding;
        let stream = to_matrix(&table, tokens.len(), self.spec.hidden as usize, rows)?;
        Ok(scaled(stream, scale))
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
        let bias = form.qkv_bias;
        let x = self.branch_input(form, role(LayerTensor::AttentionNorm), stream)?;
        let mut q = self.linear(role(LayerTensor::Query), heads * head_dim, bias, &x)?;
        let mut k = self.linear(role(LayerTensor::Key), kv_heads * head_dim, bias, &x)?;
        let v = self.linear(role(LayerTensor::Value), kv_heads * head_dim, bias, &x)?;
        drop(x);
        let norms = [role(LayerTensor::QueryNorm), role(LayerTensor::KeyNorm)];
        for (values, norm) in [&mut q, &mut k].into_iter().zip(norms) {
            *values = match form.qk_norm {
                QkNorm::None => continue,
                QkNorm::PerHead => self.norm_of_runs(norm, head_dim, values)?,
                QkNorm::WholeRow => self.norm(norm, values)?,
            };
        }
        let (mixed, kv_caches) = self.attention(form, [&q, &k, &v], spans, past);
        drop((q, k, v));
        let branch = self.linear(role(LayerTensor::AttentionOutput), hidden, false, &mixed)?;
        drop(mixed);
        let mut stream = stream.clone();
        let norm = role(LayerTensor::AttentionPostNorm);
        stream.add(&self.branch_output(form, norm, branch)?);

        let x = self.branch_input(form, role(LayerTensor::FeedForwardNorm), &stream)?;
        let mut gate = self.linear(role(LayerTensor::Gate), ffn, false, &x)?;
        let up = self.linear(role(LayerTensor::Up), ffn, false, &x)?;
        gate.for_each_row(|row, gate| {
            for (gate, up) in gate.iter_mut().zip(up.row(row)) {
                *gate = (form.activate)(*gate) * up;
            }
        });
        let branch = self.linear(role(LayerTensor::Down), hidden, false, &gate)?;
        let norm = role(LayerTensor::FeedForwardPostNorm);
        stream.add(&self.branch_output(form, norm, branch)?);
        Ok((stream, kv_caches))
    }

    /// The input of a branch: the residual stream, normalized or as it is.
    fn branch_input(&self, form: &LayerForm, norm: Role, stream: &Matrix) -> Result<Matrix> {
        if form.norms.before() {
            self.norm(norm, stream)
        } else {
            Ok(stream.clone())
        }
    }

    /// What a branch with the result `branch` adds to the residual stream.
    fn branch_output(&self, form: &LayerForm, norm: Role, branch: Matrix) -> Result<Matrix> {
        let branch = if form.norms.after() {
            self.norm(norm, &branch)?
        } else {
            branch
        };
        Ok(scaled(branch, form.residual_scale))
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
            let cos_sin = form
                .rotation
                .as_ref()
                .map(|rotation| rotation.cos_sin(span));
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
                    let end = span.before + row % span.tokens + 1;
                    let (scores, after) = scores.split_at_mut(end);
                    let (before, attended) = scores.split_at_mut(end.saturating_sub(form.window));
                    for score in &mut *attended {
                        *score = soft_cap(*score * form.score_scale, form.score_cap);
                    }
                    softmax(attended);
                    before.fill(0.0);
                    after.fill(0.0);
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
        self.norm_of_runs(role, x.columns(), x)
    }

    /// RMSNorm of each run of `length` values of each row.
    fn norm_of_runs(&self, role: Role, length: usize, x: &Matrix) -> Result<Matrix> {
        let gamma = self.vector(&role.weight(), length)?;
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

/// `x` times `scale`, if there is one.
fn scaled(mut x: Matrix, scale: Option<f32>) -> Matrix {
    if let Some(scale) = scale {
        x.for_each_row(|_, row| {
            for value in row {
                *value *= scale;
            }
        });
    }
    x
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
