//! What `evaluate` hands over.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::facts::in_layer;
use crate::model::fidelity::TokenScore;

/// The file that the order `ranges` gives beside its score.
pub const MASK: &str = "mask.json";

/// `window-NNN/score.json`: every prediction of a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowScore {
    /// Logits of the candidate that are infinite or no number.
    pub non_finite: u64,
    /// One a token but the last.
    pub tokens: Vec<TokenScore>,
}

/// `greedy/score.json`: the candidate's choices where the reference made its own, the text before
/// them the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GreedyScore {
    /// The reference's tokens, as text.
    pub text: String,
    /// The reference's tokens.
    pub expected: Vec<u32>,
    /// Whether the last of them ends the answer.
    pub ended: bool,
    /// The candidate's, all from one prefill.
    pub prefilled: Vec<u32>,
    /// The candidate's last ones, each from a decode step over the cache.
    pub decoded: Vec<u32>,
    /// The smallest distance between the reference's two best logits.
    pub smallest_gap: f32,
    /// Logits of the candidate that are infinite or no number.
    pub non_finite: u64,
}

impl GreedyScore {
    /// How many tokens the whole answer has, where the reference came to its end.
    pub fn all(&self) -> Option<usize> {
        self.ended.then_some(self.expected.len())
    }

    /// How many of the reference's tokens the candidate chose every time it was asked.
    pub fn equal(&self) -> usize {
        let first_decoded = self.expected.len().saturating_sub(self.decoded.len());
        let decoded = |index: usize| {
            index
                .checked_sub(first_decoded)
                .and_then(|index| self.decoded.get(index))
        };
        let agrees = |(index, expected): &(usize, &u32)| {
            self.prefilled.get(*index) == Some(expected)
                && decoded(*index).is_none_or(|token| token == *expected)
        };
        self.expected.iter().enumerate().filter(agrees).count()
    }
}

/// `ranges/score.json`: the largest magnitude of each measured tensor.
pub type Ranges = BTreeMap<String, f32>;

/// What an inner tensor is, if its range matters: `key` of `blk.3.key`.
pub fn measured(name: &str) -> Option<&str> {
    const MEASURED: [&str; 5] = ["residual", "key", "scores", "gate_up", "down"];
    let (_, what) = in_layer(name)?;
    MEASURED.contains(&what).then_some(what)
}

/// `ranges/mask.json`: for each layer how far masked columns lie below visible ones.
pub type Masks = BTreeMap<u32, MaskMargin>;

/// How far the masked columns of a layer lie below the visible ones, in scores: a share of
/// `e^-margin` goes to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskMargin {
    /// Over all rows of attention: the least distance of the largest visible score from the
    /// largest masked one.
    pub least: f32,
    /// What it cannot fall below while queries and keys are no longer than those seen: the depth
    /// of the mask less `2 |q| |k|`, with |q| the largest Euclidean length of a query, |k|
    /// that of a key. Negative where this says nothing.
    pub bound: f32,
}
