//! The report: figures, checks, and a table that a person can read.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::on_device::{Figure, Figures, NOT_MEASURED, Targets};
use super::{Limits, StorageLimits};
use crate::artifact::generation::Generation;
use crate::artifact::layers::{Computed, ShardScore};
use crate::artifact::score::{GreedyScore, Masks, Ranges, measured};
use crate::base::{CanonJson, Result, bytes};
use crate::model::fidelity::Fidelity;
use crate::model::ledger::{Entry, Ledger};

/// What inner tensors of every candidate must keep.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct InnerLimits {
    /// The largest magnitude, at most.
    pub range: f64,
    /// That of attention scores.
    pub scores_range: f64,
    /// How far masked scores lie below visible ones, at least.
    pub mask: f64,
}

/// All that is known of one candidate.
#[derive(Serialize)]
pub struct Candidate {
    #[serde(skip)]
    pub limits: Limits,
    pub windows: usize,
    pub fidelity: Fidelity,
    pub non_finite: u64,
    pub greedy: Option<GreedyScore>,
    pub ranges: BTreeMap<String, Range>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<Mask>,
}

/// How far masked attention scores lie below visible ones, in the layer where they come nearest.
#[derive(Clone, Serialize)]
pub struct Mask {
    pub least: f32,
    pub layer: u32,
    /// The least bound of a layer, and which layer that is.
    pub bound: f32,
    pub bound_layer: u32,
}

impl Mask {
    /// The least of all layers; none if there are none.
    pub fn of(masks: &Masks) -> Option<Mask> {
        let (layer, least) = masks
            .iter()
            .min_by(|a, b| a.1.least.total_cmp(&b.1.least))?;
        let (bound_layer, bound) = masks
            .iter()
            .min_by(|a, b| a.1.bound.total_cmp(&b.1.bound))?;
        Some(Mask {
            least: least.least,
            layer: *layer,
            bound: bound.bound,
            bound_layer: *bound_layer,
        })
    }
}

/// The largest magnitude among the tensors of one kind.
#[derive(Clone, Serialize)]
pub struct Range {
    pub largest: f32,
    pub tensor: String,
}

/// An artifact's size and its budget.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Size {
    pub bytes: u64,
    pub limit: Option<u64>,
}

/// How true stored weights are to the file they came from.
#[derive(Clone, Serialize, Deserialize)]
pub struct Storage {
    pub ledger: Ledger,
    #[serde(skip_serializing_if = "is_default", default)]
    pub limits: StorageLimits,
}

fn is_default(limits: &StorageLimits) -> bool {
    *limits == StorageLimits::default()
}

/// What a stage found, and what of it must be kept.
#[derive(Serialize)]
pub struct Held<T, L> {
    #[serde(flatten)]
    pub found: T,
    #[serde(skip)]
    pub limit: L,
}

/// What bundles did on a device, or that there was none.
#[derive(Serialize)]
pub struct OnDevice {
    pub device: Option<String>,
    pub bundles: BTreeMap<String, Figures>,
    #[serde(skip)]
    pub targets: Targets,
}

/// What is reported, by stage.
#[derive(Serialize)]
pub struct Found {
    pub candidates: BTreeMap<String, Candidate>,
    pub sizes: BTreeMap<String, Size>,
    pub storage: BTreeMap<String, Storage>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub generated: BTreeMap<String, Held<Generation, Option<usize>>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, Held<Computed, Option<f64>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_device: Option<OnDevice>,
}

/// One limit and what was found.
#[derive(Serialize)]
pub struct Check {
    of: String,
    what: String,
    found: f64,
    limit: f64,
    passed: bool,
}

/// Everything, with its verdict.
#[derive(Serialize)]
pub struct Report {
    passed: bool,
    #[serde(flatten)]
    found: Found,
    checks: Vec<Check>,
}

/// The largest of each kind of tensor, and which one it was.
pub fn by_kind(ranges: &Ranges) -> BTreeMap<String, Range> {
    let mut kinds: BTreeMap<String, Range> = BTreeMap::new();
    for (tensor, &largest) in ranges {
        let Some(kind) = measured(tensor) else {
            continue;
        };
        if kinds.get(kind).is_none_or(|known| known.largest < largest) {
            kinds.insert(
                kind.into(),
                Range {
                    largest,
                    tensor: tensor.clone(),
                },
            );
        }
    }
    kinds
}

impl Report {
    /// Holds the figures against the limits.
    pub fn new(found: Found, perplexity: Option<f64>, inner: InnerLimits) -> Self {
        let Found {
            candidates,
            sizes,
            storage,
            generated,
            layers,
            on_device,
        } = &found;
        let mut checks = vec![];
        for (name, candidate) in candidates {
            check_candidate(&mut checks, name, candidate, perplexity, inner);
        }
        for (name, size) in sizes {
            let limit = size.limit.map(|limit| limit as f64);
            at_most(&mut checks, name, "size in bytes", size.bytes as f64, limit);
        }
        for (name, Storage { ledger, limits }) in storage {
            let inexact = ledger
                .tensors
                .values()
                .filter(|entry| !entry.error.exact)
                .count();
            at_most(
                &mut checks,
                name,
                "tensors that are not exact",
                inexact as f64,
                limits.exact.then_some(0.0),
            );
            // Tensors without noise have no ratio to it.
            let sqnr = |entry: &Entry| entry.error.sqnr_db;
            if let Some(worst) = ledger.tensors.values().filter_map(sqnr).reduce(f64::min) {
                at_least(
                    &mut checks,
                    name,
                    "SQNR of the worst tensor in dB",
                    worst,
                    limits.sqnr_db,
                );
            }
        }
        for (
            name,
            Held {
                found: generation,
                limit,
            },
        ) in generated
        {
            let limit = limit.map(|limit| if generation.ended { limit.min(generation.all()) } else { limit } as f64);
            at_least(
                &mut checks,
                name,
                "tokens in Genie as the reference's",
                generation.equal() as f64,
                limit,
            );
        }
        for (
            name,
            Held {
                found: computed,
                limit,
            },
        ) in layers
        {
            let worst = computed
                .shards
                .iter()
                .map(ShardScore::worst_db)
                .fold(f64::INFINITY, f64::min);
            at_least(
                &mut checks,
                name,
                "SQNR of the worst value in dB",
                worst.clamp(-999.0, 999.0),
                *limit,
            );
        }
        for (name, row) in on_device.iter().flat_map(OnDevice::rows) {
            // What was not measured misses nothing.
            let Some(found) = row.found.0 else { continue };
            let hold = if row.is_least { at_least } else { at_most };
            hold(&mut checks, name, row.what, found, row.target);
        }
        Report {
            passed: checks.iter().all(|check| check.passed),
            found,
            checks,
        }
    }

    /// Whether every limit is kept.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// The canonical text of everything.
    pub fn json(&self) -> Result<String> {
        Ok(CanonJson::of(self)?.to_string())
    }
}

/// One figure of a bundle, and its target.
struct Row {
    what: &'static str,
    found: Figure,
    target: Option<f64>,
    /// Whether the target is the least that is good enough, not the most.
    is_least: bool,
}

impl OnDevice {
    /// Every figure that has a place in the report, by bundle.
    fn rows(&self) -> impl Iterator<Item = (&str, Row)> {
        let Targets {
            time_to_first_token_ms,
            ms_per_token,
            tokens_per_second,
            peak_memory_bytes,
            power_w,
        } = self.targets;
        let at_most = |what, found, target| Row {
            what,
            found,
            target,
            is_least: false,
        };
        self.bundles.iter().flat_map(move |(name, figures)| {
            let in_mb = |bytes: Figure| Figure(bytes.0.map(|bytes| bytes / 1e6));
            let speed = at_most(
                "tokens/s",
                figures.tokens_per_second,
                Some(tokens_per_second),
            );
            let rows = [
                at_most(
                    "time to first token in ms",
                    figures.time_to_first_token_ms,
                    time_to_first_token_ms,
                ),
                at_most("ms per token", figures.ms_per_token, Some(ms_per_token)),
                Row {
                    is_least: true,
                    ..speed
                },
                at_most(
                    "peak memory in MB",
                    in_mb(figures.peak_memory_bytes),
                    Some(peak_memory_bytes as f64 / 1e6),
                ),
                at_most("power in W", figures.power_w, Some(power_w)),
            ];
            rows.map(|row| (name.as_str(), row))
        })
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self
            .device
            .as_deref()
            .map_or("no device was given".into(), |device| {
                format!("on {device}")
            });
        for (name, figures) in &self.bundles {
            let tokens = match (figures.prompt_tokens.0, figures.answer_tokens.0) {
                (Some(prompt), Some(answer)) => {
                    format!(", a prompt of {prompt} tokens, an answer of {answer}")
                }
                _ => String::new(),
            };
            writeln!(f, "\n{name}: {place}{tokens}")?;
            for (
                _,
                Row {
                    what,
                    found,
                    target,
                    ..
                },
            ) in self.rows().filter(|(of, _)| of == name)
            {
                let found = found.0.map_or(NOT_MEASURED.into(), figure);
                let target = target.map_or(String::new(), |target| {
                    format!("  (limit {})", figure(target))
                });
                writeln!(f, "    {what:26} {found:>14}{target}")?;
            }
        }
        Ok(())
    }
}

fn check_candidate(
    checks: &mut Vec<Check>,
    name: &str,
    candidate: &Candidate,
    perplexity: Option<f64>,
    inner: InnerLimits,
) {
    let Candidate {
        limits,
        fidelity,
        greedy,
        ranges,
        mask,
        ..
    } = candidate;
    at_most(
        checks,
        name,
        "perplexity of the reference",
        fidelity.reference_perplexity,
        perplexity,
    );
    at_most(
        checks,
        name,
        "distance of the perplexity ratio from 1",
        (fidelity.ratio - 1.0).abs(),
        limits.ppl_ratio,
    );
    at_most(checks, name, "mean KL divergence", fidelity.kld, limits.kld);
    at_most(
        checks,
        name,
        "99 % KL divergence",
        fidelity.kld_99,
        limits.kld_99,
    );
    at_least(
        checks,
        name,
        "share of the same top token",
        fidelity.same_top,
        limits.same_top,
    );
    let (equal, all) = greedy
        .as_ref()
        .map_or((0, None), |greedy| (greedy.equal(), greedy.all()));
    let limit = limits
        .greedy
        .map(|limit| all.map_or(limit, |all| limit.min(all)));
    at_least(
        checks,
        name,
        "equal greedy tokens",
        equal as f64,
        limit.map(|limit| limit as f64),
    );
    at_most(
        checks,
        name,
        "logits not finite",
        candidate.non_finite as f64,
        Some(0.0),
    );
    for (kind, found) in ranges {
        let limit = if kind == "scores" {
            inner.scores_range
        } else {
            inner.range
        };
        at_most(
            checks,
            name,
            &format!("range of {kind}"),
            f64::from(found.largest),
            Some(limit),
        );
    }
    if let Some(mask) = mask {
        at_least(
            checks,
            name,
            "masked scores below visible ones",
            f64::from(mask.least),
            Some(inner.mask),
        );
    }
}

fn at_most(checks: &mut Vec<Check>, of: &str, what: &str, found: f64, limit: Option<f64>) {
    let check = |limit| Check {
        of: of.into(),
        what: what.into(),
        found,
        limit,
        passed: found <= limit,
    };
    checks.extend(limit.map(check));
}

fn at_least(checks: &mut Vec<Check>, of: &str, what: &str, found: f64, limit: Option<f64>) {
    let check = |limit| Check {
        of: of.into(),
        what: what.into(),
        found,
        limit,
        passed: found >= limit,
    };
    checks.extend(limit.map(check));
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.found.candidates.is_empty() {
            writeln!(f, "what is computed, against the reference")?;
            writeln!(
                f,
                "{:16} {:>6} {:>10} {:>10} {:>21} {:>10} {:>10} {:>10} {:>9} {:>8}",
                "",
                "tokens",
                "reference",
                "candidate",
                "perplexity ratio",
                "KLD mean",
                "KLD 99 %",
                "KLD max",
                "same top",
                "RMS dp"
            )?;
        }
        for (name, candidate) in &self.found.candidates {
            let figures = &candidate.fidelity;
            writeln!(
                f,
                "{name:16} {:>6} {:>10.4} {:>10.4} {:>10.5} +- {:.5} {:>10.2e} {:>10.2e} \
                 {:>10.2e} {:>7.2} % {:>6.2} %",
                figures.tokens,
                figures.reference_perplexity,
                figures.perplexity,
                figures.ratio,
                figures.ratio_error,
                figures.kld,
                figures.kld_99,
                figures.kld_max,
                100.0 * figures.same_top,
                100.0 * figures.rms_delta_p,
            )?;
        }
        for (name, candidate) in &self.found.candidates {
            if let Some(greedy) = &candidate.greedy {
                let (equal, all, decoded) =
                    (greedy.equal(), greedy.expected.len(), greedy.decoded.len());
                writeln!(
                    f,
                    "\n{name}: {equal} of {all} greedy tokens equal, the last {decoded} also by \
                     decode steps"
                )?;
                writeln!(
                    f,
                    "    {:?} (smallest top-2 gap {:.2})",
                    greedy.text, greedy.smallest_gap
                )?;
            }
            if !candidate.ranges.is_empty() {
                writeln!(
                    f,
                    "\n{name}: largest magnitudes, in f32 (fp16 ends at 65504)"
                )?;
            }
            for (kind, range) in &candidate.ranges {
                writeln!(f, "    {kind:10} {:>12.2}  {}", range.largest, range.tensor)?;
            }
            if let Some(Mask {
                least,
                layer,
                bound,
                bound_layer,
            }) = candidate.mask
            {
                writeln!(
                    f,
                    "    masked scores lie {least:.1} below the largest visible one, at least \
                     (layer {layer}); not less than"
                )?;
                writeln!(
                    f,
                    "    {bound:.1} while queries and keys are no longer than these (layer \
                     {bound_layer})"
                )?;
            }
        }
        for (
            name,
            Held {
                found: generation, ..
            },
        ) in &self.found.generated
        {
            let (equal, all) = (generation.equal(), generation.all());
            writeln!(
                f,
                "\n{name}: {equal} of {all} tokens in Genie as the reference's\n    {:?}",
                generation.text
            )?;
            if generation.tokens != generation.expected {
                writeln!(f, "    {:?} was expected", generation.expected_text)?;
            }
        }
        for (
            name,
            Held {
                found: computed, ..
            },
        ) in &self.found.layers
        {
            write!(
                f,
                "\n{name}: layers on the simulator, given what the graph gives them\n{}",
                indented(&computed.to_string())
            )?;
        }
        if let Some(on_device) = &self.found.on_device {
            on_device.show(f)?;
        }
        if !self.found.sizes.is_empty() {
            writeln!(f)?;
        }
        for (name, size) in &self.found.sizes {
            writeln!(f, "{name}: {}", bytes(size.bytes))?;
        }
        for (name, storage) in &self.found.storage {
            write!(
                f,
                "\n{name}: the weights as stored, against the file\n{}",
                indented(&storage.ledger.to_string())
            )?;
        }
        writeln!(f)?;
        for Check {
            of,
            what,
            found,
            limit,
            passed,
        } in &self.checks
        {
            let verdict = if *passed { "kept  " } else { "MISSED" };
            writeln!(
                f,
                "{verdict} {of:16} {what:40} {} (limit {})",
                figure(*found),
                figure(*limit)
            )?;
        }
        let missed = self.checks.iter().filter(|check| !check.passed).count();
        writeln!(
            f,
            "{}: {missed} of {} limits missed",
            if self.passed { "passed" } else { "FAILED" },
            self.checks.len()
        )
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// A number with as many digits as say something.
fn figure(value: f64) -> String {
    if value == 0.0 || (value.fract() == 0.0 && value < 1e15) {
        format!("{value}")
    } else if value.abs() < 1e-2 {
        format!("{value:.2e}")
    } else {
        format!("{value:.5}")
    }
}
