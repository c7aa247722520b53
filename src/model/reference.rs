//! The reference: a decoder in f32 on plain loops and matrix products, which shares no line with
//! our graphs. `tests/it/reference.rs` compares it with a textbook in f64 and with llama.cpp.
//!
//! It goes over all texts layer by layer. Of the weights a few rows of one matrix are in memory at
//! a time, so that a model may be far larger than the memory.

mod matrix;
mod operators;

use std::ops::Range;

use self::matrix::Matrix;
use self::operators::{rms_norm, rotate_half_split, rotate_interleaved, silu, softmax};
use super::decoder::tensors::{LayerTensor, Role};
use super::decoder::{
    Activation, Attention, DecoderSpec, Embedding, Head, Layer, Norms, QkNorm, Rotary, Window,
    not_supported, refuse_any,
};
use super::facts::RopeRows;
use super::fidelity;
use crate::base::{Code, Problem, Result};

/// Weights that are in memory at a time: 16 MB, which is more than a cache holds and little else.
const PIECE_VALUES: usize = 1 << 22;

/// Logits that are in memory at a time.
pub const LOGITS: usize = 20 << 20;

/// Gives the tensors of a file by their GGUF names, exactly dequantized.
pub trait Weights {
    /// The values of some rows of `name`, row-major. A vector is one row.
    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>>;
}

/// A model that reads its weights as it goes.
pub struct Reference<'a> {
    spec: &'a DecoderSpec,
    layers: Vec<LayerForm>,
    weights: &'a dyn Weights,
}

/// What this file calls itself in problems.
const REFERENCE: &str = "the reference";

/// How a layer is computed.
struct LayerForm {
    qkv_bias: bool,
    /// Turns one head at one position by cosines and sines.
    rotate: fn(&mut [f32], &[f32], &[f32]),
    /// By how much the columns of a head turn from one position to the next.
    frequencies: Vec<f64>,
    /// What the gate goes through.
    activate: fn(f32) -> f32,
}

impl LayerForm {
    /// The form of `layer`. Refused: parts that are not computed here.
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
        Ok(LayerForm {
            qkv_bias: *qkv_bias,
            rotate: match layout {
                RopeRows::Interleaved => rotate_interleaved,
                RopeRows::HalfSplit => rotate_half_split,
            },
            frequencies: (0..dims / 2)
                .map(|i| base.powf(-2.0 * f64::from(i) / columns))
                .collect(),
            activate: match activation {
                Activation::Silu => silu,
                Activation::GeluTanh => return Err(not_supported(REFERENCE, activation)),
            },
        })
    }

    /// Cosines and sines of the angles at the positions of `span`, `[tokens, dims / 2]`.
    fn turns(&self, span: &Span) -> [Matrix; 2] {
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

/// The residual stream after the last layer, `[tokens, hidden]`.
pub struct State(Matrix);

/// One token of a greedy continuation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The most probable token.
    pub token: u32,
    /// How far its logit stands above the second's: a small gap is a coin toss.
    pub gap: f32,
}

/// Some tokens of a text, and where they stand: the same for all layers.
struct Span {
    tokens: usize,
    /// Tokens before them.
    before: usize,
}

/// What a layer knows of a text: its keys and values, `[tokens, head_dim]` of each key head.
struct KvCache {
    keys: Vec<Matrix>,
    values: Vec<Matrix>,
}

impl<'a> Reference<'a> {
    /// The model that `spec` describes. Refused: parts that are not computed here.
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
        let forms = spec.layers.iter().map(|layer| LayerForm::of(layer, spec));
        Ok(Reference {
            spec,
            layers: forms.collect::<Result<_>>()?,
            weights,
        })
    }

    /// What the layers make of each of `texts`, before which nothing comes; `begun` hears of each
    /// layer.
    pub fn states(
        &self,
        texts: &[&[u32]],
        mut begun: impl FnMut(u32) -> Result<()>,
    ) -> Result<Vec<State>> {
        let spans: Vec<Span> = texts.iter().map(|text| self.span(0, text.len())).collect();
        let mut stream = self.embedding(&texts.concat())?;
        for (layer, form) in (0..).zip(&self.layers) {
            begun(layer)?;
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

    /// Shows the logits after each token of `state`, `[tokens, vocab]` row-major, some rows at a
    /// time.
    pub fn logits(&self, state: &State, mut show: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
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
            show(logits.values())?;
        }
        Ok(())
    }

    /// The most probable tokens after `prompt`, one after the other: `count` of them, or up to the
    /// first of `ends`. `begun` hears of each.
    pub fn greedy(
        &self,
        prompt: &[u32],
        count: usize,
        ends: &[u32],
        mut begun: impl FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Choice>> {
        let mut past: Vec<Option<KvCache>> = self.layers.iter().map(|_| None).collect();
        let mut next = prompt.to_vec();
        let mut choices: Vec<Choice> = Vec::with_capacity(count);
        while choices.len() < count
            && choices
                .last()
                .is_none_or(|choice| !ends.contains(&choice.token))
        {
            begun(choices.len())?;
            let before = if choices.is_empty() {
                0
            } else {
                prompt.len() + choices.len() - 1
            };
            let spans = [self.span(before, next.len())];
            let mut stream = self.embedding(&next)?;
            for ((layer, form), past) in (0..).zip(&self.layers).zip(&mut past) {
                let (after, mut kv_cache) =
                    self.layer(layer, form, &stream, &spans, past.as_ref())?;
                (stream, *past) = (after, kv_cache.pop());
            }
            let last = stream.some_rows(next.len() - 1..next.len());
            self.logits(&State(last), |row| {
                let none = || Problem::new(Code::ReferenceLogits, "no logit is a number");
                choices.push(Choice {
                    token: fidelity::top(row).ok_or_else(none)?,
                    gap: fidelity::top_gap(row),
                });
                Ok(())
            })?;
            next = choices
                .last()
                .map(|choice| choice.token)
                .into_iter()
                .collect();
        }
        Ok(choices)
    }

    /// `[tokens, hidden]`.
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
        matrix(&table, tokens.len(), self.spec.hidden as usize, rows)
    }

    /// `tokens` that come after `before` others.
    fn span(&self, before: usize, tokens: usize) -> Span {
        Span { tokens, before }
    }

    /// The residual stream after a layer, and what it then knows of each text. These `spans` stand
    /// one after the other in `stream`; `past` is what comes before the only one.
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
        let (mixed, kv_cache) = {
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
        Ok((stream, kv_cache))
    }

    /// What the heads mix of the values, `[tokens, heads * head_dim]`, and what is then known of
    /// each text.
    fn attention(
        &self,
        form: &LayerForm,
        [q, k, v]: [&Matrix; 3],
        spans: &[Span],
        past: Option<&KvCache>,
    ) -> (Matrix, Vec<KvCache>) {
        let [heads, kv_heads, dim] =
            [self.spec.heads, self.spec.kv_heads, self.spec.head_dim].map(|size| size as usize);
        // The heads that share a key stand one after the other.
        let group = heads.checked_div(kv_heads).unwrap_or(0);
        let columns = |head: usize| head * dim..(head + 1) * dim;
        let mut mixed = Matrix::zeros(q.rows(), heads * dim);
        let mut all = vec![];
        let mut first = 0;
        for span in spans {
            let rows = first..first + span.tokens;
            let turns = form.turns(span);
            let mut kv_cache = KvCache {
                keys: vec![],
                values: vec![],
            };
            for key_head in 0..kv_heads {
                let (mut keys, mut values) = match past {
                    Some(past) => (past.keys[key_head].clone(), past.values[key_head].clone()),
                    None => (Matrix::zeros(0, dim), Matrix::zeros(0, dim)),
                };
                keys.append(&form.rotated(k.block(rows.clone(), columns(key_head)), &turns));
                values.append(&v.block(rows.clone(), columns(key_head)));
                let query_heads = key_head * group..(key_head + 1) * group;
                let mut queries = Matrix::zeros(0, dim);
                for head in query_heads.clone() {
                    queries.append(&form.rotated(q.block(rows.clone(), columns(head)), &turns));
                }
                let mut shares = queries.times_transposed(&keys);
                shares.for_each_row(|row, scores| {
                    // A token sees itself and those before it.
                    let seen = span.before + row % span.tokens + 1;
                    let (seen, unseen) = scores.split_at_mut(seen);
                    for score in &mut *seen {
                        *score *= (dim as f64).sqrt().recip() as f32;
                    }
                    softmax(seen);
                    unseen.fill(0.0);
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
            all.push(kv_cache);
            first += span.tokens;
        }
        (mixed, all)
    }

    fn norm(&self, role: Role, x: &Matrix) -> Result<Matrix> {
        let gamma = self.vector(&role.weight(), x.columns())?;
        Ok(rms_norm(x, &gamma, self.spec.rms_epsilon))
    }

    /// `x W^T`, and the bias added if there is one. Some rows of the matrix at a time.
    fn linear(&self, role: Role, rows: usize, has_bias: bool, x: &Matrix) -> Result<Matrix> {
        let columns = x.columns();
        let piece = (PIECE_VALUES / columns.max(1)).max(1);
        let weight = role.weight();
        let mut y = Matrix::zeros(x.rows(), rows);
        for first in (0..rows).step_by(piece) {
            let some = first..rows.min(first + piece);
            let values = self.weights.rows(&weight, some.clone())?;
            let weights = matrix(&weight, some.len(), columns, values)?;
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

    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let values = self.weights.rows(name, 0..1)?;
        Ok(matrix(name, 1, length, values)?.into_values())
    }
}

/// The values of `name` as a matrix.
fn matrix(name: &str, rows: usize, columns: usize, values: Vec<f32>) -> Result<Matrix> {
    let found = values.len();
    Matrix::new(rows, columns, values).ok_or_else(|| {
        let message = format!("`{name}`: expected {rows} rows of {columns} values, found {found}");
        Problem::new(Code::ReferenceTensor, message)
    })
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
    fn parts_that_are_not_computed_here_are_refused_by_name() {
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
