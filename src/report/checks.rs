//! Compares figures with limits.

use serde::Serialize;

use super::limits::{
    Limits, MASK, MS_PER_TOKEN, PEAK_MEMORY_BYTES, POWER_W, RANGE, SCORES_RANGE, TOKENS_PER_SECOND,
};
use super::{Candidate, Found, Storage};
use crate::artifact::device::{Figure, Figures};
use crate::artifact::estimate::ModelEstimate;
use crate::artifact::generation::Generation;
use crate::artifact::layer_evaluation::Computed;

/// One limit and the figure that is compared with it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Check {
    pub(super) of: String,
    pub(super) what: String,
    pub(super) found: f64,
    pub(super) limit: f64,
    pub(super) passed: bool,
}

/// The checks of one stage.
struct Checks<'a> {
    of: &'a str,
    all: &'a mut Vec<Check>,
}

impl Checks<'_> {
    fn at_most(&mut self, what: &str, found: f64, limit: Option<f64>) {
        if let Some(limit) = limit {
            self.add(what, found, limit, found <= limit);
        }
    }

    fn at_least(&mut self, what: &str, found: f64, limit: Option<f64>) {
        if let Some(limit) = limit {
            self.add(what, found, limit, found >= limit);
        }
    }

    fn add(&mut self, what: &str, found: f64, limit: f64, passed: bool) {
        self.all.push(Check {
            of: self.of.into(),
            what: what.into(),
            found,
            limit,
            passed,
        });
    }
}

/// Every check of everything that was found.
pub(super) fn all(found: &Found) -> Vec<Check> {
    let mut all = vec![];
    for (of, candidate) in &found.candidates {
        let mut checks = Checks { of, all: &mut all };
        check_candidate(&mut checks, &candidate.found, &candidate.limits);
    }
    for (of, size) in &found.sizes {
        let mut checks = Checks { of, all: &mut all };
        if let Some(limit) = size.limits.size_bytes {
            let bytes = size.found.bytes as f64;
            checks.at_most("size in bytes", bytes, Some(limit as f64));
        }
    }
    for (of, storage) in &found.storage {
        let mut checks = Checks { of, all: &mut all };
        check_storage(&mut checks, &storage.found, &storage.limits);
    }
    for (of, generation) in &found.generated {
        let mut checks = Checks { of, all: &mut all };
        check_generation(&mut checks, &generation.found, &generation.limits);
    }
    for (of, layers) in &found.layers {
        let mut checks = Checks { of, all: &mut all };
        check_layers(&mut checks, &layers.found, &layers.limits);
    }
    for (of, estimate) in &found.estimates {
        let mut checks = Checks { of, all: &mut all };
        check_estimate(&mut checks, &estimate.found, &estimate.limits);
    }
    for (of, device) in &found.devices {
        let mut checks = Checks { of, all: &mut all };
        for row in rows(&device.found.figures, &device.limits) {
            // A figure that was not measured cannot miss its limit.
            let Some(found) = row.found.0 else { continue };
            if row.is_minimum {
                checks.at_least(row.what, found, row.limit);
            } else {
                checks.at_most(row.what, found, row.limit);
            }
        }
    }
    all
}

fn check_candidate(checks: &mut Checks, candidate: &Candidate, limits: &Limits) {
    let fidelity = &candidate.fidelity;
    checks.at_most(
        "perplexity of the reference",
        fidelity.reference_perplexity,
        limits.perplexity,
    );
    checks.at_most(
        "distance of the perplexity ratio from 1",
        (fidelity.ratio - 1.0).abs(),
        limits.ppl_ratio,
    );
    checks.at_most("mean KL divergence", fidelity.kld, limits.kld);
    checks.at_most("99 % KL divergence", fidelity.kld_99, limits.kld_99);
    checks.at_least(
        "share of the same top token",
        fidelity.same_top,
        limits.same_top,
    );
    if let Some(mut limit) = limits.greedy {
        let mut equal = 0;
        if let Some(greedy) = &candidate.greedy {
            equal = greedy.equal();
            if let Some(all) = greedy.all() {
                limit = limit.min(all);
            }
        }
        checks.at_least("equal greedy tokens", equal as f64, Some(limit as f64));
    }
    let non_finite = candidate.non_finite as f64;
    checks.at_most("logits not finite", non_finite, Some(0.0));
    for (kind, range) in &candidate.ranges {
        let limit = if kind == "scores" {
            limits.scores_range.unwrap_or(SCORES_RANGE)
        } else {
            limits.range.unwrap_or(RANGE)
        };
        let what = format!("range of {kind}");
        checks.at_most(&what, f64::from(range.largest), Some(limit));
    }
    if let Some(mask) = &candidate.mask {
        checks.at_least(
            "masked scores below visible ones",
            f64::from(mask.least),
            Some(limits.mask.unwrap_or(MASK)),
        );
    }
}

fn check_storage(checks: &mut Checks, storage: &Storage, limits: &Limits) {
    let (mut inexact, mut worst) = (0, f64::INFINITY);
    for entry in storage.quantization.tensors.values() {
        if !entry.error.exact {
            inexact += 1;
        }
        // Tensors without noise have no SQNR.
        if let Some(sqnr_db) = entry.error.sqnr_db {
            worst = worst.min(sqnr_db);
        }
    }
    if limits.exact == Some(true) {
        checks.at_most("tensors that are not exact", f64::from(inexact), Some(0.0));
    }
    if worst < f64::INFINITY {
        checks.at_least("SQNR of the worst tensor in dB", worst, limits.sqnr_db);
    }
}

fn check_generation(checks: &mut Checks, generation: &Generation, limits: &Limits) {
    let Some(mut limit) = limits.greedy else {
        return;
    };
    if generation.ended {
        limit = limit.min(generation.all());
    }
    checks.at_least(
        "tokens in Genie as the reference's",
        generation.equal() as f64,
        Some(limit as f64),
    );
}

fn check_layers(checks: &mut Checks, layers: &Computed, limits: &Limits) {
    let mut worst = f64::INFINITY;
    for shard in &layers.shards {
        worst = worst.min(shard.worst_db());
    }
    let worst = worst.clamp(-999.0, 999.0);
    checks.at_least("SQNR of the worst value in dB", worst, limits.sqnr_db);
}

fn check_estimate(checks: &mut Checks, estimate: &ModelEstimate, limits: &Limits) {
    for (role, sum) in &estimate.sums {
        let limit_ms = match role.as_str() {
            "decode" => limits.decode_ms,
            _ => limits.prefill_ms,
        };
        checks.at_most(&format!("estimated ms of {role}"), sum.time_ms(), limit_ms);
        if let Some(limit) = limits.spill_bytes {
            let what = format!("estimated spill of {role} in bytes");
            checks.at_most(&what, sum.spill_bytes as f64, Some(limit as f64));
        }
    }
}

/// One figure of a device, and its limit.
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) found: Figure,
    pub(super) limit: Option<f64>,
    /// Whether the limit is a minimum, not a maximum.
    is_minimum: bool,
}

/// Every figure of a device that can have a limit.
pub(super) fn rows(figures: &Figures, limits: &Limits) -> [Row; 5] {
    let row = |what, found, limit| Row {
        what,
        found,
        limit,
        is_minimum: false,
    };
    let megabytes = Figure(figures.peak_memory_bytes.0.map(|bytes| bytes / 1e6));
    let max_bytes = limits.peak_memory_bytes.unwrap_or(PEAK_MEMORY_BYTES);
    [
        row(
            "time to first token in ms",
            figures.time_to_first_token_ms,
            limits.time_to_first_token_ms,
        ),
        row(
            "ms per token",
            figures.ms_per_token,
            Some(limits.ms_per_token.unwrap_or(MS_PER_TOKEN)),
        ),
        Row {
            what: "tokens/s",
            found: figures.tokens_per_second,
            limit: Some(limits.tokens_per_second.unwrap_or(TOKENS_PER_SECOND)),
            is_minimum: true,
        },
        row("peak memory in MB", megabytes, Some(max_bytes as f64 / 1e6)),
        row(
            "power in W",
            figures.power_w,
            Some(limits.power_w.unwrap_or(POWER_W)),
        ),
    ]
}
