//! The three measurements of a candidate, whatever runs it.

use super::candidate::model;
use super::decoder::Decoder;
use super::mask::MaskWatch;
use super::observe::{Observer, PREFILL, observe};
use crate::action::Job;
use crate::artifact::evaluation::{GreedyScore, Masks, Ranges, WindowScore, measured};
use crate::artifact::reference::Greedy;
use crate::base::{Code, Context, Problem, Result};
use crate::model::facts::GraphFacts;
use crate::model::fidelity::{self, TokenScore};

/// Every prediction over the inputs `tokens` and `logits` of the reference.
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
        let reference: Vec<f32> = row
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let unknown = || {
            Problem::new(
                Code::EvaluateToken,
                format!("the token {next} is not in the vocabulary"),
            )
        };
        scores.push(TokenScore::of(&reference, candidate, *next).ok_or_else(unknown)?);
        Ok(())
    })?;
    Ok(WindowScore {
        non_finite,
        tokens: scores,
    })
}

/// The greedy continuation of the input `greedy` of the reference.
pub fn score_greedy(job: &Job, decoder: &mut Decoder, decode_steps: usize) -> Result<GreedyScore> {
    let Greedy {
        prompt,
        tokens: expected,
        ended,
        gaps,
        text,
    } = read_json(job, "greedy")?;
    let steps = decode_steps.min(expected.len());
    let said: Vec<u32> = prompt.iter().chain(&expected).copied().collect();
    // The last token is only predicted, never fed.
    let fed = said.get(..said.len().saturating_sub(1)).unwrap_or_default();
    job.progress(0, 1 + steps as u64, "calls");
    let (mut logits, mut cache) = decoder.start(fed)?;
    let mut non_finite = fidelity::sanitize(&mut logits);
    let rows = logits
        .chunks_exact(decoder.model.vocab as usize)
        .skip(prompt.len().saturating_sub(1));
    let prefilled = rows.filter_map(fidelity::top).collect();
    cache.truncate(fed.len().saturating_sub(steps));
    let mut decoded = vec![];
    for token in fed.iter().skip(cache.tokens()) {
        job.check_cancelled()?;
        job.progress(1 + decoded.len() as u64, 1 + steps as u64, "calls");
        let mut logits = decoder.step(*token, &mut cache)?;
        non_finite += fidelity::sanitize(&mut logits);
        decoded.extend(fidelity::top(&logits));
    }
    let smallest_gap = gaps.into_iter().fold(f32::MAX, f32::min);
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

/// The largest magnitudes, in f32, where what overflows in fp16 is best seen: norm and softmax
/// swallow an infinity, and the logits look sane. And how well the mask hides.
pub fn score_ranges(job: &Job) -> Result<(Ranges, Masks)> {
    let tokens: Vec<u32> = read_json(job, "tokens")?;
    let model = model(job)?;
    let graph: GraphFacts = job.input(PREFILL)?.facts.read()?;
    let mask = MaskWatch::new(tokens.len(), graph.tokens as usize, model.head_dim as usize);
    let mut inner = Inner {
        largest: Ranges::new(),
        mask,
    };
    observe(job, &model, &[tokens], &mut inner)?;
    Ok((inner.largest, inner.mask.margins()?))
}

/// What is measured of a graph's inner tensors.
struct Inner {
    largest: Ranges,
    mask: MaskWatch,
}

impl Observer for Inner {
    fn wants(&self, value: &str) -> bool {
        measured(value).is_some() || MaskWatch::wants(value)
    }

    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        if measured(value).is_some() {
            // A NaN counts as the largest number: JSON has neither it nor infinity.
            let magnitude = |value: &f32| {
                if value.is_finite() {
                    value.abs()
                } else {
                    f32::MAX
                }
            };
            let largest = elements.iter().map(magnitude).fold(0.0, f32::max);
            self.largest.insert(value.into(), largest);
        }
        self.mask.see(value, elements)
    }
}

fn read_json<T: serde::de::DeserializeOwned>(job: &Job, input: &str) -> Result<T> {
    serde_json::from_slice(&job.read(input)?)
        .context(Code::EvaluateReference, || format!("read `{input}`"))
}
