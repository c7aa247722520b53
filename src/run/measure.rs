//! The three measurements of a candidate, which are the same for every engine.

use super::candidate::model;
use super::decoder::Decoder;
use super::layers::Observer;
use super::mask::MaskWatch;
use super::observe::{PREFILL, observe};
use crate::action::Job;
use crate::artifact::evaluation::{GreedyScore, Masks, Ranges, WindowScore, measured};
use crate::artifact::reference::Greedy;
use crate::base::{Code, Context, Problem, Result};
use crate::model::decoder::inputs::{mask_name, short_window};
use crate::model::facts::{GraphFacts, of_all_heads};
use crate::model::fidelity::{self, TokenScore};

/// Scores every prediction of the candidate over a window of the reference: the inputs `tokens` and
/// `logits`.
pub fn score_window(
    job: &Job,
    decoder: &mut Decoder,
    tokens: &str,
    logits: &str,
) -> Result<WindowScore> {
    let tokens: Vec<u32> = read_json(job, tokens)?;
    let reference = job.read(logits)?;
    let vocab = decoder.model.vocab as usize;
    if reference.len() != 4 * tokens.len() * vocab {
        return Err(Problem::new(
            Code::EvaluateVocabulary,
            format!(
                "the reference has {} logits a token, the candidate {vocab}",
                reference.len() / 4 / tokens.len().max(1)
            ),
        )
        .help("score a candidate against a reference with the same tokens"));
    }
    let (mut logits, _) = decoder.start(&tokens)?;
    let non_finite = fidelity::sanitize(&mut logits);
    // The last token is only predicted.
    let mut rows = logits.chunks_exact(vocab).zip(tokens.iter().skip(1));
    let mut scores = vec![];
    reference.stream(4 * vocab, |row| {
        let Some((candidate, next)) = rows.next() else {
            return Ok(());
        };
        let mut reference = vec![];
        for bytes in row.as_chunks().0 {
            reference.push(f32::from_le_bytes(*bytes));
        }
        let Some(score) = TokenScore::of(&reference, candidate, *next) else {
            let message = format!("the token {next} is not in the vocabulary");
            return Err(Problem::new(Code::EvaluateToken, message));
        };
        scores.push(score);
        Ok(())
    })?;
    Ok(WindowScore {
        non_finite,
        tokens: scores,
    })
}

/// Scores the candidate's greedy choices along the continuation in the input `greedy` of the
/// reference. The last `decode_steps` are made by decode steps too.
pub fn score_greedy(job: &Job, decoder: &mut Decoder, decode_steps: usize) -> Result<GreedyScore> {
    let Greedy {
        prompt,
        tokens: expected,
        ended,
        gaps,
        text,
    } = read_json(job, "greedy")?;
    let steps = decode_steps.min(expected.len());
    let mut fed = [prompt.as_slice(), &expected].concat();
    // The last token is only predicted, never fed.
    fed.pop();
    job.progress(0, 1 + steps as u64, "calls");
    let (mut logits, mut cache) = decoder.start(&fed)?;
    let mut non_finite = fidelity::sanitize(&mut logits);
    let first = prompt.len().saturating_sub(1);
    let rows = logits
        .chunks_exact(decoder.model.vocab as usize)
        .skip(first);
    let mut prefilled = vec![];
    for row in rows {
        prefilled.extend(fidelity::top(row));
    }
    cache.truncate(fed.len().saturating_sub(steps));
    let mut decoded = vec![];
    for token in fed.iter().skip(cache.tokens()) {
        job.check_cancelled()?;
        job.progress(1 + decoded.len() as u64, 1 + steps as u64, "calls");
        let mut logits = decoder.step(*token, &mut cache)?;
        non_finite += fidelity::sanitize(&mut logits);
        decoded.extend(fidelity::top(&logits));
    }
    let mut smallest_gap = f32::MAX;
    for gap in gaps {
        smallest_gap = smallest_gap.min(gap);
    }
    Ok(GreedyScore {
        text,
        expected,
        ended,
        prefilled,
        decoded,
        smallest_gap,
        non_finite,
    })
}

/// Measures the largest magnitudes of inner tensors over the input `tokens`, and how well the mask
/// hides. In f32, because an overflow in fp16 need not show in the logits: norm and softmax turn an
/// infinity into ordinary numbers.
pub fn score_ranges(job: &Job) -> Result<(Ranges, Masks)> {
    let tokens: Vec<u32> = read_json(job, "tokens")?;
    let spec = model(job)?;
    let graph: GraphFacts = job.input(PREFILL)?.facts.read()?;
    let mut masks = vec![];
    for layer in &spec.layers {
        let window = short_window(layer.attention.window, graph.context.into());
        masks.push(mask_name(window));
    }
    let (rows, head_dim) = (graph.tokens as usize, spec.head_dim as usize);
    let mask = MaskWatch::new(tokens.len(), rows, head_dim, masks);
    let mut recorder = RangeRecorder {
        largest: Ranges::new(),
        mask,
    };
    observe(job, &spec, &[tokens], &mut recorder)?;
    Ok((recorder.largest, recorder.mask.margins()?))
}

/// Records the figures of a graph's inner tensors.
struct RangeRecorder {
    largest: Ranges,
    mask: MaskWatch,
}

impl Observer for RangeRecorder {
    fn wants(&self, value: &str) -> bool {
        measured(value).is_some() || MaskWatch::wants(value)
    }

    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        if measured(value).is_some() {
            let largest = self.largest.entry(of_all_heads(value).into()).or_default();
            *largest = largest.max(largest_magnitude(elements));
        }
        self.mask.see(value, elements)
    }
}

/// `f32::MAX` if an element is not finite: JSON has neither NaN nor infinity.
fn largest_magnitude(elements: &[f32]) -> f32 {
    let mut largest = 0.0f32;
    for element in elements {
        if !element.is_finite() {
            return f32::MAX;
        }
        largest = largest.max(element.abs());
    }
    largest
}

fn read_json<T: serde::de::DeserializeOwned>(job: &Job, input: &str) -> Result<T> {
    serde_json::from_slice(&job.read(input)?)
        .context(Code::EvaluateReference, || format!("read `{input}`"))
}
