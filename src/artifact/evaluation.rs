//! The output of `evaluate`: scores of a candidate against the reference.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::facts::{in_layer, of_all_heads};
use crate::model::fidelity::TokenScore;

/// The file that the order `ranges` writes beside its score.
pub const MASK: &str = "mask.json";

/// `window-NNN/score.json`: every prediction of a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowScore {
    /// Number of the candidate's logits that are infinite or NaN.
    pub non_finite: u64,
    /// One for each token except the last.
    pub tokens: Vec<TokenScore>,
}

/// `greedy/score.json`: the candidate's choices along the reference's greedy continuation: each
/// after the same text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GreedyScore {
    /// The reference's tokens, as text.
    pub text: String,
    /// The reference's tokens.
    pub expected: Vec<u32>,
    /// Whether the answer ends with the last of them.
    pub ended: bool,
    /// The candidate's choices, all from one prefill.
    pub prefilled: Vec<u32>,
    /// The candidate's last choices, each from a decode step over the cache.
    pub decoded: Vec<u32>,
    /// The smallest distance between the reference's two best logits.
    pub smallest_gap: f32,
    /// Number of the candidate's logits that are infinite or NaN.
    pub non_finite: u64,
}

impl GreedyScore {
    /// Number of tokens of the answer; `None` if the reference did not reach its end.
    pub fn all(&self) -> Option<usize> {
        self.ended.then_some(self.expected.len())
    }

    /// Number of the reference's tokens that the candidate chose, by the prefill and, where there
    /// is one, by the decode step.
    pub fn equal(&self) -> usize {
        let first_decoded = self.expected.len().saturating_sub(self.decoded.len());
        let mut equal = 0;
        for (index, expected) in self.expected.iter().enumerate() {
            let decoded_differs =
                index >= first_decoded && self.decoded.get(index - first_decoded) != Some(expected);
            if self.prefilled.get(index) == Some(expected) && !decoded_differs {
                equal += 1;
            }
        }
        equal
    }
}

/// `ranges/score.json`: the largest magnitude of each measured tensor.
pub type Ranges = BTreeMap<String, f32>;

/// The kind of an inner tensor whose range is measured: `key` for `blk.3.key`, `scores` for the
/// scores of a head.
pub fn measured(name: &str) -> Option<&str> {
    const MEASURED: [&str; 5] = ["residual", "key", "scores", "gate_up", "down"];
    let (_, what) = in_layer(of_all_heads(name))?;
    if MEASURED.contains(&what) {
        Some(what)
    } else {
        None
    }
}

/// `ranges/mask.json`: for each layer how far masked columns lie below visible ones.
pub type Masks = BTreeMap<u32, MaskMargin>;

/// How far the scores of masked columns are below those of visible ones in a layer. At margin m, a
/// masked column has about `e^-m` of the weight of a visible one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskMargin {
    /// The least distance of the largest visible score from the largest masked one, over all rows
    /// of attention.
    pub least: f32,
    /// A lower bound of the margin for queries and keys no longer than those observed: the depth of
    /// the mask minus `2 |q| |k|`, with |q| the largest Euclidean length of a query, |k| that of a
    /// key. A negative bound tells nothing.
    pub bound: f32,
}
