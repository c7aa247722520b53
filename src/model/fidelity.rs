//! How close one model's predictions are to another's, as `llama-perplexity --kl-divergence`
//! measures it.

use serde::{Deserialize, Serialize};

/// Two next-token distributions at one position: the reference's and a candidate's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenScore {
    /// `-ln p` of the token that follows, by the reference.
    pub reference_nll: f64,
    /// The same by the candidate.
    pub nll: f64,
    /// Kullback-Leibler divergence of the candidate from the reference, in nats.
    pub kld: f64,
    /// How much more probable the candidate finds the token that follows.
    pub delta_p: f64,
    /// Whether both find the same token most probable.
    pub same_top: bool,
}

impl TokenScore {
    /// Scores the logits of one position against the token that really follows. `None` if the
    /// slices differ in length or `next` lies outside.
    pub fn of(reference: &[f32], candidate: &[f32], next: u32) -> Option<Self> {
        let next = usize::try_from(next)
            .ok()
            .filter(|next| *next < reference.len())?;
        if reference.len() != candidate.len() {
            return None;
        }
        let (to_log, to_log_candidate) = (log_normalizer(reference), log_normalizer(candidate));
        let log_p = |logit: f32| f64::from(logit) - to_log;
        let log_q = |logit: f32| f64::from(logit) - to_log_candidate;
        let kld = reference
            .iter()
            .zip(candidate)
            .map(|(&r, &c)| log_p(r).exp() * (log_p(r) - log_q(c)))
            .sum();
        let (at_next, at_next_candidate) =
            (log_p(*reference.get(next)?), log_q(*candidate.get(next)?));
        Some(TokenScore {
            reference_nll: -at_next,
            nll: -at_next_candidate,
            kld,
            delta_p: at_next_candidate.exp() - at_next.exp(),
            same_top: top(reference) == top(candidate),
        })
    }
}

/// `ln sum exp`, in f64 and about the largest logit, so that it neither overflows nor loses small
/// terms.
fn log_normalizer(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest
        + logits
            .iter()
            .map(|&logit| (f64::from(logit) - largest).exp())
            .sum::<f64>()
            .ln()
}

/// The most probable token; the first of equals.
pub fn top(logits: &[f32]) -> Option<u32> {
    let best =
        logits
            .iter()
            .enumerate()
            .fold(
                None,
                |best: Option<(usize, f32)>, (token, &logit)| match best {
                    Some((_, largest)) if logit <= largest => best,
                    _ => Some((token, logit)),
                },
            );
    best.and_then(|(token, _)| u32::try_from(token).ok())
}

/// How far the most probable token's logit stands above the second's.
pub fn top_gap(logits: &[f32]) -> f32 {
    let (first, second) = logits.iter().fold(
        (f32::NEG_INFINITY, f32::NEG_INFINITY),
        |(first, second), &logit| {
            if logit > first {
                (logit, first)
            } else {
                (first, second.max(logit))
            }
        },
    );
    first - second
}

/// Replaces what is no number by the nearest of fp16 (a NaN by the lowest) and counts it: figures
/// stay finite and bad, and the count tells why.
pub fn sanitize(logits: &mut [f32]) -> u64 {
    const LARGEST_HALF: f32 = 65504.0;
    let mut count = 0;
    for logit in logits.iter_mut().filter(|logit| !logit.is_finite()) {
        *logit = if *logit == f32::INFINITY {
            LARGEST_HALF
        } else {
            -LARGEST_HALF
        };
        count += 1;
    }
    count
}

/// All positions together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Positions scored.
    pub tokens: usize,
    /// The reference's perplexity.
    pub reference_perplexity: f64,
    /// The candidate's perplexity.
    pub perplexity: f64,
    /// The candidate's perplexity over the reference's.
    pub ratio: f64,
    /// Standard error of `ratio`; both models read the same tokens, so it is that of the mean
    /// difference.
    pub ratio_error: f64,
    /// Mean KL divergence, in nats.
    pub kld: f64,
    /// 99 % of the positions have at most this KL divergence.
    pub kld_99: f64,
    /// Largest KL divergence.
    pub kld_max: f64,
    /// Share of positions with the same most probable token.
    pub same_top: f64,
    /// Root of the mean square of `delta_p`.
    pub rms_delta_p: f64,
}

impl Fidelity {
    /// Aggregates `scores`; `None` for fewer than two, which have no standard error.
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

/// The value below which `share` of `sorted` lies, between neighbours by proportion.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let at = |index: f64| sorted.get(index as usize).copied().unwrap_or(f64::NAN);
    let (below, above) = (at(place.floor()), at(place.ceil()));
    below + (above - below) * place.fract()
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
    fn a_position_by_hand() {
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
    fn slices_that_do_not_fit_are_not_scored() {
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
    fn what_is_no_number_is_counted() {
        let mut logits = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(sanitize(&mut logits), 3);
        assert_eq!(logits, [1.0, -65504.0, 65504.0, -65504.0]);
    }

    #[test]
    fn all_positions_by_hand() {
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
