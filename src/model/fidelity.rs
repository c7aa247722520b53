//! Compares the predictions of two models, with the metrics of `llama-perplexity --kl-divergence`.

use serde::{Deserialize, Serialize};

/// Compares the next-token distributions of the reference and a candidate at one position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenScore {
    /// `-ln p` of the next token in the reference's distribution.
    pub reference_nll: f64,
    /// `-ln p` of the next token in the candidate's distribution.
    pub nll: f64,
    /// Kullback-Leibler divergence of the candidate from the reference, in nats.
    pub kld: f64,
    /// Probability of the next token, candidate minus reference.
    pub delta_p: f64,
    /// Whether the most probable token is the same.
    pub same_top: bool,
}

impl TokenScore {
    /// Scores the logits of one position against the `next` token of the text. `None` if the slices
    /// differ in length or `next` is out of range.
    pub fn of(reference: &[f32], candidate: &[f32], next: u32) -> Option<Self> {
        let next = usize::try_from(next).ok()?;
        if next >= reference.len() || reference.len() != candidate.len() {
            return None;
        }
        let (reference_norm, norm) = (log_normalizer(reference), log_normalizer(candidate));
        let mut kld = 0.0;
        for (reference, candidate) in reference.iter().zip(candidate) {
            let log_p = f64::from(*reference) - reference_norm;
            let log_q = f64::from(*candidate) - norm;
            kld += log_p.exp() * (log_p - log_q);
        }
        let log_p = f64::from(reference[next]) - reference_norm;
        let log_q = f64::from(candidate[next]) - norm;
        Some(TokenScore {
            reference_nll: -log_p,
            nll: -log_q,
            kld,
            delta_p: log_q.exp() - log_p.exp(),
            same_top: top(reference) == top(candidate),
        })
    }
}

/// `ln sum exp` in f64. The largest logit is subtracted first, so that it neither overflows nor
/// loses small terms.
fn log_normalizer(logits: &[f32]) -> f64 {
    let mut max = f32::NEG_INFINITY;
    for logit in logits {
        max = max.max(*logit);
    }
    let max = f64::from(max);
    let mut sum = 0.0;
    for logit in logits {
        sum += (f64::from(*logit) - max).exp();
    }
    max + sum.ln()
}

/// The most probable token; the first of equals.
pub fn top(logits: &[f32]) -> Option<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (token, &logit) in logits.iter().enumerate() {
        match best {
            Some((_, largest)) if logit <= largest => {}
            _ => best = Some((token, logit)),
        }
    }
    let (token, _) = best?;
    u32::try_from(token).ok()
}

/// The logit of the most probable token minus that of the second.
pub fn top_gap(logits: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &logit in logits {
        if logit > first {
            (first, second) = (logit, first);
        } else {
            second = second.max(logit);
        }
    }
    first - second
}

/// Replaces infinities by the largest f16 of their sign and NaN by the lowest, and returns their
/// number. Metrics stay finite but bad, and the number shows the reason.
pub fn sanitize(logits: &mut [f32]) -> u64 {
    const MAX_F16: f32 = 65504.0;
    let mut count = 0;
    for logit in logits {
        if logit.is_finite() {
            continue;
        }
        *logit = if *logit == f32::INFINITY {
            MAX_F16
        } else {
            -MAX_F16
        };
        count += 1;
    }
    count
}

/// The metrics over all positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Number of positions.
    pub tokens: usize,
    /// Perplexity of the reference.
    pub reference_perplexity: f64,
    /// Perplexity of the candidate.
    pub perplexity: f64,
    /// Perplexity of the candidate divided by that of the reference.
    pub ratio: f64,
    /// Standard error of `ratio`. Both models read the same tokens, so it follows from the error of
    /// the mean difference.
    pub ratio_error: f64,
    /// Mean KL divergence, in nats.
    pub kld: f64,
    /// 99th percentile of the KL divergence.
    pub kld_99: f64,
    /// Maximum KL divergence.
    pub kld_max: f64,
    /// Share of positions with the same most probable token.
    pub same_top: f64,
    /// Root mean square of `delta_p`.
    pub rms_delta_p: f64,
}

impl Fidelity {
    /// Aggregates `scores`. `None` for fewer than two, which have no standard error.
    pub fn of(scores: &[TokenScore]) -> Option<Self> {
        let tokens = scores.len();
        if tokens < 2 {
            return None;
        }
        let mean = |figure: &dyn Fn(&TokenScore) -> f64| {
            scores.iter().map(figure).sum::<f64>() / tokens as f64
        };
        let reference_nll = mean(&|score| score.reference_nll);
        let nll = mean(&|score| score.nll);
        let ratio = (nll - reference_nll).exp();
        let spread =
            mean(&|score| (score.nll - score.reference_nll - (nll - reference_nll)).powi(2));
        let mut klds: Vec<f64> = scores.iter().map(|score| score.kld).collect();
        klds.sort_by(f64::total_cmp);
        Some(Fidelity {
            tokens,
            reference_perplexity: reference_nll.exp(),
            perplexity: nll.exp(),
            ratio,
            // Delta method: the error of exp(x) is exp(x) times the error of x.
            ratio_error: ratio * (spread / (tokens - 1) as f64).sqrt(),
            kld: mean(&|score| score.kld),
            kld_99: quantile(&klds, 0.99),
            kld_max: quantile(&klds, 1.0),
            same_top: mean(&|score| f64::from(u8::from(score.same_top))),
            rms_delta_p: mean(&|score| score.delta_p.powi(2)).sqrt(),
        })
    }
}

/// The quantile `share` of `sorted`, interpolated linearly between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share * sorted.len().saturating_sub(1) as f64;
    let at = |index: f64| sorted.get(index as usize).copied().unwrap_or(f64::NAN);
    let (below, above) = (at(position.floor()), at(position.ceil()));
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-9,
            "found {found}, expected {expected}"
        );
    }

    #[test]
    fn the_score_of_a_position() {
        // p = [1/2, 1/4, 1/4], q = [1/4, 1/2, 1/4]: KLD = 1/2 ln 2 - 1/4 ln 2.
        let ln = |p: f32| p.ln() + 3.0;
        let score = TokenScore::of(
            &[ln(0.5), ln(0.25), ln(0.25)],
            &[ln(0.25), ln(0.5), ln(0.25)],
            1,
        )
        .unwrap();
        assert!((score.kld - 0.25 * 2f64.ln()).abs() < 1e-6);
        assert!((score.reference_nll - 4f64.ln()).abs() < 1e-6);
        assert!((score.nll - 2f64.ln()).abs() < 1e-6);
        assert!((score.delta_p - 0.25).abs() < 1e-6);
        assert!(!score.same_top);
    }

    #[test]
    fn a_shifted_copy_is_the_same_distribution() {
        let score = TokenScore::of(&[1.0, -300.0, 80.0], &[3.0, -298.0, 82.0], 0).unwrap();
        assert!(score.kld.abs() < 1e-12 && score.delta_p.abs() < 1e-12 && score.same_top);
    }

    #[test]
    fn invalid_positions_are_not_scored() {
        assert!(TokenScore::of(&[0.0], &[0.0, 1.0], 0).is_none());
        assert!(TokenScore::of(&[0.0], &[0.0], 1).is_none());
    }

    #[test]
    fn the_first_of_equals_is_the_top() {
        assert_eq!(top(&[1.0, 2.0, 2.0]), Some(1));
        assert_eq!(top(&[]), None);
        assert_eq!(top_gap(&[1.0, 5.0, 3.5]), 1.5);
    }

    #[test]
    fn non_finite_logits_are_replaced_and_counted() {
        let mut logits = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(sanitize(&mut logits), 3);
        assert_eq!(logits, [1.0, -65504.0, 65504.0, -65504.0]);
    }

    #[test]
    fn the_metrics_of_two_positions() {
        let score = |reference_nll, nll, kld, delta_p, same_top| TokenScore {
            reference_nll,
            nll,
            kld,
            delta_p,
            same_top,
        };
        let all = Fidelity::of(&[
            score(1.0, 1.1, 0.1, 0.3, true),
            score(2.0, 2.3, 0.3, -0.4, false),
        ])
        .unwrap();
        close(all.reference_perplexity, 1.5f64.exp());
        close(all.perplexity, 1.7f64.exp());
        close(all.ratio, 0.2f64.exp());
        // Differences 0.1 and 0.3: variance 0.02 of the sample, 0.01 of its mean.
        close(all.ratio_error, 0.2f64.exp() * 0.1);
        close(all.kld, 0.2);
        close(all.kld_99, 0.1 + 0.99 * 0.2);
        close(all.kld_max, 0.3);
        close(all.same_top, 0.5);
        close(all.rms_delta_p, 0.125f64.sqrt());
        assert!(Fidelity::of(&[score(1.0, 1.0, 0.0, 0.0, true)]).is_none());
    }
}
