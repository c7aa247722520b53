//! The yardstick: a decoder in f32 on candle's operators, which shares no line with our graphs.
//! `tests/it/reference.rs` holds it against candle's own models.
//!
//! It goes over all texts layer by layer. Of the weights a few rows of one matrix are in memory at
//! a time, so that a model may be far larger than the memory.

use std::ops::Range;

use candle_core::{D, Device, Error, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::{rope, rope_i};

use super::decoder::tensors::{LayerTensor, Role};
use super::decoder::{
    Activation, Attention, DecoderSpec, Embedding, Head, Layer, Norms, QkNorm, Rotary, Window,
    not_supported, refuse_any,
};
use super::facts::RopeRows;
use super::fidelity;
use crate::base::{Context, Problem, Result};

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
    /// Turns `[1, heads, tokens, dims]` by cosines and sines.
    rotate: fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor, Error>,
    /// By how much the columns of a head turn from one position to the next.
    frequencies: Vec<f64>,
    /// What the gate goes through.
    activate: fn(&Tensor) -> Result<Tensor, Error>,
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
                RopeRows::Interleaved => rope_i,
                RopeRows::HalfSplit => rope,
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
    fn turns(&self, span: &Span) -> Result<[Tensor; 2], Error> {
        let positions = span.before..span.before + span.tokens;
        let angles = positions.flat_map(|position| {
            let turned = self.frequencies.iter();
            turned.map(move |frequency| position as f64 * frequency)
        });
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| (angle.cos() as f32, angle.sin() as f32))
            .unzip();
        let shape = (span.tokens, self.frequencies.len());
        Ok([
            Tensor::from_vec(cos, shape, &Device::Cpu)?,
            Tensor::from_vec(sin, shape, &Device::Cpu)?,
        ])
    }
}

/// The residual stream after the last layer, `[tokens, hidden]`.
pub struct State(Tensor);

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
    /// `[tokens, before + tokens]`: a token sees itself and those before it.
    mask: Tensor,
}

/// What a layer knows of a text: its keys and values, `[kv_heads, tokens, head_dim]`.
struct Attended {
    keys: Tensor,
    values: Tensor,
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
        let spans = texts
            .iter()
            .map(|text| self.span(0, text.len()))
            .collect::<Result<Vec<_>>>()?;
        let mut stream = self.embedding(&texts.concat())?;
        for (layer, form) in (0..).zip(&self.layers) {
            begun(layer)?;
            (stream, _) = self.layer(layer, form, &stream, &spans, None)?;
        }
        ran(split(&stream, &spans))?
            .into_iter()
            .map(|state| Ok(State(state)))
            .collect()
    }

    /// Shows the logits after each token of `state`, `[tokens, vocab]` row-major, some rows at a
    /// time.
    pub fn logits(&self, state: &State, mut show: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let rows = (LOGITS / self.spec.vocab.max(1) as usize).max(1);
        let tokens = ran(state.0.dim(0))?;
        for first in (0..tokens).step_by(rows) {
            let some = ran(state.0.narrow(0, first, rows.min(tokens - first)))?;
            let head = if self.spec.head.tied {
                Role::Embedding
            } else {
                Role::Head
            };
            let normal = self.norm(Role::FinalNorm, &some)?;
            let logits = self.linear(head, self.spec.vocab as usize, false, &normal)?;
            show(&ran(logits
                .flatten_all()
                .and_then(|logits| logits.to_vec1()))?)?;
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
        let mut past: Vec<Option<Attended>> = self.layers.iter().map(|_| None).collect();
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
            let spans = [self.span(before, next.len())?];
            let mut stream = self.embedding(&next)?;
            for ((layer, form), past) in (0..).zip(&self.layers).zip(&mut past) {
                let (after, mut attended) =
                    self.layer(layer, form, &stream, &spans, past.as_ref())?;
                (stream, *past) = (after, attended.pop());
            }
            let last = ran(stream.narrow(0, next.len() - 1, 1))?;
            self.logits(&State(last), |row| {
                let none = || Problem::new("kiln::reference::logits", "no logit is a number");
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
    fn embedding(&self, tokens: &[u32]) -> Result<Tensor> {
        if tokens.is_empty() {
            return Err(Problem::new(
                "kiln::reference::prompt",
                "there is no text to begin with",
            ));
        }
        let (mut rows, table) = (vec![], Role::Embedding.weight());
        for token in tokens {
            let row = *token as usize;
            rows.extend(self.weights.rows(&table, row..row + 1)?);
        }
        tensor(rows, tokens.len(), self.spec.hidden as usize)
    }

    /// `tokens` that come after `before` others.
    fn span(&self, before: usize, tokens: usize) -> Result<Span> {
        Ok(Span {
            tokens,
            before,
            mask: ran(mask(before, tokens))?,
        })
    }

    /// The residual stream after a layer, and what it then knows of each text. These `spans` stand
    /// one after the other in `stream`; `past` is what comes before the only one.
    fn layer(
        &self,
        layer: u32,
        form: &LayerForm,
        stream: &Tensor,
        spans: &[Span],
        past: Option<&Attended>,
    ) -> Result<(Tensor, Vec<Attended>)> {
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
        let x = self.norm(role(LayerTensor::AttentionNorm), stream)?;
        let q = self.linear(role(LayerTensor::Query), heads * head_dim, bias, &x)?;
        let k = self.linear(role(LayerTensor::Key), kv_heads * head_dim, bias, &x)?;
        let v = self.linear(role(LayerTensor::Value), kv_heads * head_dim, bias, &x)?;
        let (mixed, attended) = ran(self.attention(form, [&q, &k, &v], spans, past))?;
        let output = self.linear(role(LayerTensor::AttentionOutput), hidden, false, &mixed)?;
        let stream = ran(stream + output)?;

        let x = self.norm(role(LayerTensor::FeedForwardNorm), &stream)?;
        let gate = self.linear(role(LayerTensor::Gate), ffn, false, &x)?;
        let gate = ran((form.activate)(&gate))?;
        let up = ran(gate * self.linear(role(LayerTensor::Up), ffn, false, &x)?)?;
        let down = self.linear(role(LayerTensor::Down), hidden, false, &up)?;
        Ok((ran(stream + down)?, attended))
    }

    /// What the heads mix of the values, `[tokens, heads * head_dim]`, and what is then known of
    /// each text.
    fn attention(
        &self,
        form: &LayerForm,
        [q, k, v]: [&Tensor; 3],
        spans: &[Span],
        past: Option<&Attended>,
    ) -> Result<(Tensor, Vec<Attended>), Error> {
        let [heads, kv_heads, dim] =
            [self.spec.heads, self.spec.kv_heads, self.spec.head_dim].map(|size| size as usize);
        let (mut mixes, mut all) = (vec![], vec![]);
        let texts = split(q, spans)?
            .into_iter()
            .zip(split(k, spans)?)
            .zip(split(v, spans)?);
        for (span, ((q, k), v)) in spans.iter().zip(texts) {
            let Span {
                tokens,
                before,
                mask,
            } = span;
            let (tokens, all_tokens) = (*tokens, before + tokens);
            let by_head = |x: &Tensor, heads| {
                x.reshape((tokens, heads, dim))?
                    .transpose(0, 1)?
                    .contiguous()
            };
            let [cos, sin] = form.turns(span)?;
            let turned = |x: Tensor| (form.rotate)(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0);
            let q = turned(by_head(&q, heads)?)?;
            let attended = Attended {
                keys: turned(by_head(&k, kv_heads)?)?,
                values: by_head(&v, kv_heads)?,
            };
            let attended = match past {
                Some(past) => Attended {
                    keys: Tensor::cat(&[&past.keys, &attended.keys], 1)?,
                    values: Tensor::cat(&[&past.values, &attended.values], 1)?,
                },
                None => attended,
            };
            // The heads that share a key stand one after the other.
            let rows = heads.checked_div(kv_heads).unwrap_or(0) * tokens;
            let folded = q.reshape((kv_heads, rows, dim))?;
            let scores = (folded.matmul(&attended.keys.t()?)? * (dim as f64).sqrt().recip())?;
            let scores = scores
                .reshape((heads, tokens, all_tokens))?
                .broadcast_add(mask)?;
            let shares = softmax_last_dim(&scores)?.reshape((kv_heads, rows, all_tokens))?;
            let mix = shares
                .matmul(&attended.values)?
                .reshape((heads, tokens, dim))?;
            mixes.push(mix.transpose(0, 1)?.reshape((tokens, heads * dim))?);
            all.push(attended);
        }
        Ok((Tensor::cat(&mixes, 0)?, all))
    }

    fn norm(&self, role: Role, x: &Tensor) -> Result<Tensor> {
        let gamma = self.vector(&role.weight())?;
        ran(rms_norm(x, &gamma, self.spec.rms_epsilon))
    }

    /// `x W^T`, and the bias added if there is one. Some rows of the matrix at a time.
    fn linear(&self, role: Role, rows: usize, has_bias: bool, x: &Tensor) -> Result<Tensor> {
        let columns = ran(x.dim(D::Minus1))?;
        let piece = (PIECE_VALUES / columns.max(1)).max(1);
        let matrix = role.weight();
        let mut columns_of_y = vec![];
        for first in (0..rows).step_by(piece) {
            let some = first..rows.min(first + piece);
            let weights = self.weights.rows(&matrix, some.clone())?;
            let weights = tensor(weights, some.len(), columns)?;
            columns_of_y.push(ran(weights.t().and_then(|weights| x.matmul(&weights)))?);
        }
        let y = ran(Tensor::cat(&columns_of_y, 1))?;
        if !has_bias {
            return Ok(y);
        }
        ran(y.broadcast_add(&self.vector(&role.bias())?))
    }

    fn vector(&self, name: &str) -> Result<Tensor> {
        let values = self.weights.rows(name, 0..1)?;
        let count = values.len();
        ran(Tensor::from_vec(values, count, &Device::Cpu))
    }
}

/// 0 where a token sees another, minus infinity elsewhere.
fn mask(before: usize, tokens: usize) -> Result<Tensor, Error> {
    let all = before + tokens;
    let sees = |row: usize| {
        (0..all).map(move |column| {
            if column <= before + row {
                0.0
            } else {
                f32::NEG_INFINITY
            }
        })
    };
    Tensor::from_vec(
        (0..tokens).flat_map(sees).collect(),
        (tokens, all),
        &Device::Cpu,
    )
}

/// The rows of each text.
fn split(x: &Tensor, spans: &[Span]) -> Result<Vec<Tensor>, Error> {
    let mut first = 0;
    let mut rows = |span: &Span| {
        let rows = x.narrow(0, first, span.tokens);
        first += span.tokens;
        rows
    };
    spans.iter().map(&mut rows).collect()
}

fn tensor(values: Vec<f32>, rows: usize, columns: usize) -> Result<Tensor> {
    ran(Tensor::from_vec(values, (rows, columns), &Device::Cpu))
}

/// What candle made, or its error as ours.
fn ran<T>(made: Result<T, Error>) -> Result<T> {
    made.context("kiln::reference::run", || "run the model in f32".into())
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
