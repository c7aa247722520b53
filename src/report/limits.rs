//! The limits for the figures of a stage, their defaults, and which artifacts have them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::ArtifactKind;

/// Default limit of the largest magnitude of a measured inner tensor: less than half of the maximum
/// of fp16.
pub(super) const RANGE: f64 = 30000.0;
/// The same for attention scores: above it, fp16 has steps of 2.
pub(super) const SCORES_RANGE: f64 = 2048.0;
/// Default minimum distance of masked scores from visible ones. With it, a masked column gets at
/// most `e^-30` of the attention.
pub(super) const MASK: f64 = 30.0;
/// Default limits on a device: the targets of the project.
pub(super) const MS_PER_TOKEN: f64 = 50.0;
pub(super) const TOKENS_PER_SECOND: f64 = 20.0;
pub(super) const PEAK_MEMORY_BYTES: u64 = 2_000_000_000;
pub(super) const POWER_W: f64 = 5.0;

/// The limits of one stage. A figure without a limit is reported only, unless the limit has a
/// default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of an evaluation: distance of the perplexity ratio from 1, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub ppl_ratio: Option<f64>,
    /// Of an evaluation: mean KL divergence in nats, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub kld: Option<f64>,
    /// Of an evaluation: 99th percentile of the KL divergence in nats, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub kld_99: Option<f64>,
    /// Of an evaluation: share of tokens whose most probable successor is the reference's, at
    /// least.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub same_top: Option<f64>,
    /// Of an evaluation: greedy tokens that equal the reference's, each after the reference's own
    /// tokens, at least. Of a generation: tokens of the answer that equal the reference's, from the
    /// first to the first other one, at least. All of them, if the reference's answer is shorter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greedy: Option<usize>,
    /// Of an evaluation: perplexity of the reference itself, at most. A model whose file is broken
    /// agrees with itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub perplexity: Option<f64>,
    /// Of an evaluation: the largest magnitude of a measured inner tensor, at most. fp16 ends at
    /// 65504.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("default" = RANGE))]
    pub range: Option<f64>,
    /// Of an evaluation: the largest magnitude of attention scores, at most. Above 2048, fp16 has
    /// steps of 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("default" = SCORES_RANGE))]
    pub scores_range: Option<f64>,
    /// Of an evaluation: distance of masked attention scores below the largest visible one of their
    /// row, at least. With 30, a masked column gets at most `e^-30` of the attention of that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("default" = MASK))]
    pub mask: Option<f64>,
    /// Of weights: whether every value of every tensor must equal the file's in f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
    /// Of weights: signal-to-noise ratio of the worst tensor in dB, at least. Of a layer
    /// evaluation: the same of the worst value that a shard computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub sqnr_db: Option<f64>,
    /// Of a context binary or a DLC: bytes of its `.bin` and `.dlc` files, at most. Of a bundle:
    /// bytes of all its files, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Of device figures: milliseconds from the prompt to the first token of the answer, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub time_to_first_token_ms: Option<f64>,
    /// Of device figures: milliseconds per token of the answer, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("default" = MS_PER_TOKEN))]
    pub ms_per_token: Option<f64>,
    /// Of device figures: tokens of the answer per second, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("default" = TOKENS_PER_SECOND))]
    pub tokens_per_second: Option<f64>,
    /// Of device figures: peak resident memory of Genie's process, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = PEAK_MEMORY_BYTES))]
    pub peak_memory_bytes: Option<u64>,
    /// Of device figures: average power of the whole device in watts, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0), extend("default" = POWER_W))]
    pub power_w: Option<f64>,
    /// Of an estimate: milliseconds of a decode call, which makes one token, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub decode_ms: Option<f64>,
    /// Of an estimate: milliseconds of a prefill call, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub prefill_ms: Option<f64>,
    /// Of an estimate: bytes of intermediate values that a call writes to DDR, at most. It holds for
    /// each of the estimated graphs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spill_bytes: Option<u64>,
}

/// The artifacts that can be reported on, with the limits that each has.
pub const KINDS: [(ArtifactKind, &[&str]); 9] = [
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
    ("estimate", &["decode_ms", "prefill_ms", "spill_bytes"]),
];

impl Limits {
    /// The limits of artifact `kind`, by name.
    pub fn of_kind(kind: ArtifactKind) -> &'static [&'static str] {
        match KINDS.iter().find(|(artifact, _)| *artifact == kind) {
            Some((_, limits)) => limits,
            None => &[],
        }
    }

    /// The names of the limits that are given.
    pub fn given(&self) -> Vec<String> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(limits)) => limits.keys().cloned().collect(),
            _ => vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_limit_belongs_to_an_artifact() {
        let schema = serde_json::to_value(schemars::schema_for!(Limits)).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let mut limits = BTreeSet::new();
        for (_, of_kind) in KINDS {
            limits.extend(of_kind.iter().map(|limit| limit.to_string()));
        }
        assert_eq!(limits, properties.keys().cloned().collect());
    }

    /// Plan authors see the descriptions only, not `KINDS`.
    #[test]
    fn descriptions_name_the_artifacts_that_have_the_limit() {
        let phrases = [
            ("evaluation", "of an evaluation"),
            ("layer-evaluation", "of a layer evaluation"),
            ("generation", "of a generation"),
            ("weights", "of weights"),
            ("context-bin", "of a context binary"),
            ("dlc", "or a dlc"),
            ("bundle", "of a bundle"),
            ("device-figures", "of device figures"),
            ("estimate", "of an estimate"),
        ];
        let schema = serde_json::to_value(schemars::schema_for!(Limits)).unwrap();
        for (kind, limits) in KINDS {
            let (_, phrase) = phrases.iter().find(|(name, _)| *name == kind).unwrap();
            for (limit, property) in schema["properties"].as_object().unwrap() {
                let description = property["description"].as_str().unwrap();
                let described = description
                    .to_lowercase()
                    .replace('\n', " ")
                    .contains(phrase);
                assert_eq!(
                    described,
                    limits.contains(&limit.as_str()),
                    "{kind}: {description}"
                );
            }
        }
    }
}
