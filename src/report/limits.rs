//! The limits of a report: what each stage that is reported on must keep.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::ArtifactKind;

/// What one stage must keep. A limit that is not given is reported only, unless it has a default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Distance of the ratio of perplexities from 1, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub ppl_ratio: Option<f64>,
    /// Mean KL divergence in nats, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub kld: Option<f64>,
    /// 99 % KL divergence in nats, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub kld_99: Option<f64>,
    /// Share of equal most probable tokens, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub same_top: Option<f64>,
    /// Equal tokens of the greedy continuation, at least; no more are asked for than the
    /// reference's whole answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greedy: Option<usize>,
    /// The reference's own perplexity, at most: a model that is broken in its file agrees with
    /// itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub perplexity: Option<f64>,
    /// The largest magnitude of a measured inner tensor, at most; 30000 by default, fp16 ends at
    /// 65504.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub range: Option<f64>,
    /// The largest magnitude of attention scores, at most; 2048 by default: above it, fp16 has
    /// steps of 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub scores_range: Option<f64>,
    /// How far masked attention scores lie below the largest visible one, at least; 30 by default:
    /// `e^-30` of the attention goes to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub mask: Option<f64>,
    /// Whether every value of every tensor must be the file's, bit for bit in f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
    /// Signal to noise ratio in dB, at least: of the worst tensor of stored weights, or of the worst
    /// value that layers compute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub sqnr_db: Option<f64>,
    /// Bytes at most: of a binary's or a DLC's files, of all files of a bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Milliseconds to the first token of the answer, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub time_to_first_token_ms: Option<f64>,
    /// Milliseconds per token of the answer, at most; 50 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub ms_per_token: Option<f64>,
    /// Tokens of the answer per second, at least; 20 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub tokens_per_second: Option<f64>,
    /// The largest resident memory of Genie's process, at most; 2 GB by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// What the whole device draws on average, at most; 5 W by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub power_w: Option<f64>,
}

/// What can be reported on, with the limits that each has.
pub const KINDS: [(ArtifactKind, &[&str]); 8] = [
    (
        "evaluation",
        &[
            "ppl_ratio",
            "kld",
            "kld_99",
            "same_top",
            "greedy",
            "perplexity",
            "range",
            "scores_range",
            "mask",
        ],
    ),
    ("layer-evaluation", &["sqnr_db"]),
    ("generation", &["greedy"]),
    ("weights", &["exact", "sqnr_db"]),
    ("context-bin", &["size_bytes"]),
    ("dlc", &["size_bytes"]),
    ("bundle", &["size_bytes"]),
    (
        "device-figures",
        &[
            "time_to_first_token_ms",
            "ms_per_token",
            "tokens_per_second",
            "peak_memory_bytes",
            "power_w",
        ],
    ),
];

impl Limits {
    /// The limits of artifact `kind`, by name.
    pub fn of_kind(kind: ArtifactKind) -> &'static [&'static str] {
        KINDS
            .iter()
            .find(|(known, _)| *known == kind)
            .map_or(&[], |(_, limits)| limits)
    }

    /// The names of the limits that are given.
    pub fn given(&self) -> Vec<String> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(limits)) => limits.keys().cloned().collect(),
            _ => vec![],
        }
    }

    /// The limits that may be no number, by name.
    pub fn numbers(&self) -> [(&'static str, Option<f64>); 13] {
        [
            ("ppl_ratio", self.ppl_ratio),
            ("kld", self.kld),
            ("kld_99", self.kld_99),
            ("same_top", self.same_top),
            ("perplexity", self.perplexity),
            ("range", self.range),
            ("scores_range", self.scores_range),
            ("mask", self.mask),
            ("sqnr_db", self.sqnr_db),
            ("time_to_first_token_ms", self.time_to_first_token_ms),
            ("ms_per_token", self.ms_per_token),
            ("tokens_per_second", self.tokens_per_second),
            ("power_w", self.power_w),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_belongs_to_an_artifact() {
        let schema = serde_json::to_value(schemars::schema_for!(Limits)).unwrap();
        let known: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        for limit in &known {
            let belongs = |(_, limits): &(_, &[&str])| limits.contains(&limit.as_str());
            assert!(KINDS.iter().any(belongs), "{limit}");
        }
        for limit in KINDS.iter().flat_map(|(_, limits)| limits.iter()) {
            assert!(known.iter().any(|known| known == limit), "{limit}");
        }
    }
}
