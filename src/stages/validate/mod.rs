//! `validate`: all scores together, held against the plan's limits.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `scores` | none | the `score` stages to report on |
//! | `size` | none | stages whose artifacts have a size budget |
//! | `limits.SCORE` | none | what the candidate of that score stage may miss by, see below |
//! | `perplexity` | none | the reference's own perplexity at most: a model that is broken in its file agrees with itself |
//! | `range` | 30000 | the largest magnitude of a measured inner tensor; fp16 ends at 65504 |
//! | `scores_range` | 2048 | the largest magnitude of attention scores: there a half has steps of 1 |
//! | `mask` | 30 | how far masked scores lie below the largest visible one, at least: e^-30 of the attention goes to them |
//! | `size_bytes.STAGE` | none | bytes at most of that stage's `*.bin` and `*.dlc`, of a bundle's every file |
//! | `weights` | none | `requant` stages whose ledger is carried: how true the stored weights are to the file |
//! | `storage.STAGE` | none | what the weights of that stage must keep: `exact`, `sqnr_db` |
//! | `generations` | none | `generate` stages: what a bundle said in Genie |
//! | `generated.STAGE` | none | tokens of that stage's answer, from the first on, that are the reference's, at least |
//! | `layers` | none | `layers` stages: what some layers compute on the simulator |
//! | `layers_sqnr_db.STAGE` | none | signal to noise in dB of the worst value that the layers of that stage give, at least |
//! | `strict` | `true` | a missed limit fails the stage |
//! | `bundles` | none | `package` stages whose speed, memory and power are reported |
//! | `device` | none | `adb:SERIAL` or `ssh:HOST`: where they are measured |
//! | `runner` | `"/data/local/tmp/genie"` | the device's folder with `genie-t2t-run` and its libraries |
//! | `answer_tokens` | 128 | tokens of the answer that is timed, at most |
//! | `targets` | see [`Targets`] | what each bundle must keep on the device |
//!
//! | limit | meaning |
//! |---|---|
//! | `ppl_ratio` | distance of the perplexity ratio from 1, at most |
//! | `kld`, `kld_99` | mean and 99 % KL divergence in nats, at most |
//! | `same_top` | share of equal most probable tokens, at least |
//! | `greedy` | equal tokens of the greedy continuation, at least |
//!
//! What is not measured misses nothing. With a device the stage is volatile: it measures anew in
//! every build.
//!
//! Where a missed limit fails the stage, the report stands in the problem, which leaves it as files
//! too.

mod on_device;
mod report;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, Inputs, Job, Manifest, Order, Outputs, ParamProblem, PartName, StageSpec, TypedStage,
};
use crate::artifact::bundle;
use crate::artifact::generation::GENERATION;
use crate::artifact::layers::LAYERS;
use crate::artifact::score::{GreedyScore, MASK, Masks, Ranges, WindowScore};
use crate::base::{CanonJson, Context, Problem, Result};
use crate::model::fidelity::Fidelity;
use crate::model::ledger::Ledger;

use on_device::{Device, Figures, Targets};
use report::{Candidate, Found, Held, InnerLimits, Mask, OnDevice, Report, Size, Storage};

/// See the module's table.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// What the candidate of each score may miss by.
    #[serde(default)]
    limits: BTreeMap<String, Limits>,
    /// The reference's own perplexity, at most: a model that is broken in its file agrees with
    /// itself.
    #[schemars(range(min = 0.0))]
    perplexity: Option<f64>,
    /// The largest magnitude of a measured inner tensor, at most; fp16 ends at 65504.
    #[serde(default = "default_range")]
    #[schemars(range(min = 0.0))]
    range: f64,
    /// The largest magnitude of attention scores, at most; beyond 2048 a half has steps of 2.
    #[serde(default = "default_scores_range")]
    #[schemars(range(min = 0.0))]
    scores_range: f64,
    /// How far masked attention scores lie below the largest visible one, at least: `e^-mask` of
    /// the attention goes to them.
    #[serde(default = "default_mask")]
    #[schemars(range(min = 0.0))]
    mask: f64,
    /// Bytes of the `.bin` and `.dlc` of each stage of `size`, at most.
    #[serde(default)]
    size_bytes: BTreeMap<String, u64>,
    /// What the weights of each stage of `weights` must keep of the file.
    #[serde(default)]
    storage: BTreeMap<String, StorageLimits>,
    /// Tokens of the answer of each stage of `generations` that are the reference's, from the
    /// first on, at least.
    #[serde(default)]
    generated: BTreeMap<String, usize>,
    /// Signal to noise in dB of the worst value that the layers of each stage of `layers` give, at
    /// least.
    #[serde(default)]
    layers_sqnr_db: BTreeMap<String, f64>,
    /// A missed limit fails the stage; else the report only says so.
    #[serde(default = "yes")]
    strict: bool,
    /// `adb:SERIAL` or `ssh:HOST`: where the bundles are measured; empty for nowhere.
    #[serde(default)]
    device: String,
    /// The device's folder with `genie-t2t-run` and its libraries.
    #[serde(default = "default_runner")]
    #[schemars(regex(pattern = r"^/[A-Za-z0-9/._+-]*$"))]
    runner: String,
    /// Tokens of the answer that is timed, at most.
    #[serde(default = "default_answer_tokens")]
    #[schemars(range(min = 1))]
    answer_tokens: u32,
    /// What each bundle must keep on the device.
    #[serde(default)]
    targets: Targets,
}

fn yes() -> bool {
    true
}

fn is_set(flag: &bool) -> bool {
    *flag
}

fn default_runner() -> String {
    "/data/local/tmp/genie".into()
}

fn default_answer_tokens() -> u32 {
    128
}

fn default_range() -> f64 {
    30000.0
}

fn default_scores_range() -> f64 {
    2048.0
}

fn default_mask() -> f64 {
    30.0
}

/// What one candidate must keep; what is not given is reported only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Distance of the ratio of perplexities from 1, at most.
    ppl_ratio: Option<f64>,
    /// Mean KL divergence in nats, at most.
    kld: Option<f64>,
    /// 99 % KL divergence in nats, at most.
    kld_99: Option<f64>,
    /// Share of equal most probable tokens, at least.
    same_top: Option<f64>,
    /// Equal tokens of the greedy continuation, at least.
    greedy: Option<usize>,
}

/// What stored weights must keep of the file they came from; what is not given is reported only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageLimits {
    /// Every value of every tensor is the file's, bit for bit in f32.
    #[serde(default)]
    exact: bool,
    /// Signal to quantization noise of the worst tensor in dB, at least.
    sqnr_db: Option<f64>,
}

/// All limits of all candidates, and the sizes and ledgers, which manifests tell without opening
/// anything.
#[derive(Serialize, Deserialize)]
pub struct Limited {
    candidates: BTreeMap<String, Limits>,
    perplexity: Option<f64>,
    inner: InnerLimits,
    sizes: BTreeMap<String, Size>,
    storage: BTreeMap<String, Storage>,
    /// The stages that generated, and what each must keep.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    generated: BTreeMap<String, Option<usize>>,
    /// The stages that ran layers, and what each must keep.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    layers: BTreeMap<String, Option<f64>>,
    /// A missed limit fails the stage; else the report only says so.
    #[serde(default = "yes", skip_serializing_if = "is_set")]
    strict: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_device: Option<Measuring>,
}

/// Bundles that are measured, if there is a device.
#[derive(Serialize, Deserialize)]
pub struct Measuring {
    bundles: Vec<String>,
    targets: Targets,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<Device>,
}

/// The stage.
pub struct Validate;

impl TypedStage for Validate {
    type Params = Params;
    type Order = Limited;
    const SPEC: StageSpec = StageSpec {
        kind: "validate",
        version: 3,
        summary: "all scores together, held against the plan's limits",
        gives: "report",
        inputs: &[
            InputSpec {
                name: "scores",
                accepts: &["score"],
                required: false,
                many: true,
            },
            InputSpec {
                name: "size",
                accepts: &["context-bin", "dlc", "bundle"],
                required: false,
                many: true,
            },
            InputSpec {
                name: "weights",
                accepts: &["weights"],
                required: false,
                many: true,
            },
            InputSpec {
                name: "generations",
                accepts: &["generation"],
                required: false,
                many: true,
            },
            InputSpec {
                name: "layers",
                accepts: &["layers"],
                required: false,
                many: true,
            },
            InputSpec {
                name: "bundles",
                accepts: &["bundle"],
                required: false,
                many: true,
            },
        ],
        params: &[
            "limits",
            "perplexity",
            "range",
            "scores_range",
            "mask",
            "size_bytes",
            "storage",
            "generated",
            "layers_sqnr_db",
            "strict",
            "device",
            "runner",
            "answer_tokens",
            "targets",
        ],
        keyed: &[
            ("limits", "scores"),
            ("size_bytes", "size"),
            ("storage", "weights"),
            ("generated", "generations"),
            ("layers_sqnr_db", "layers"),
        ],
        reaches_outside: false,
        measures: true,
    };

    fn check(params: &Params, slots: &[&str]) -> Vec<ParamProblem> {
        let targets = params
            .targets
            .named()
            .map(|(target, value)| (format!("targets/{target}"), value));
        let own = [
            ("perplexity".to_string(), params.perplexity),
            ("range".into(), Some(params.range)),
        ];
        let inner = [
            ("scores_range".to_string(), Some(params.scores_range)),
            ("mask".into(), Some(params.mask)),
        ];
        let limits = params.limits.iter().flat_map(|(name, limits)| {
            [
                ("ppl_ratio", limits.ppl_ratio),
                ("kld", limits.kld),
                ("kld_99", limits.kld_99),
                ("same_top", limits.same_top),
            ]
            .map(|(limit, value)| (format!("limits/{name}/{limit}"), value))
        });
        let storage = params
            .storage
            .iter()
            .map(|(name, limits)| (format!("storage/{name}/sqnr_db"), limits.sqnr_db));
        let layers = params
            .layers_sqnr_db
            .iter()
            .map(|(name, db)| (format!("layers_sqnr_db/{name}"), Some(*db)));
        let is_bad = |value: &f64| !value.is_finite() || *value < 0.0;
        let bad = own
            .into_iter()
            .chain(inner)
            .chain(limits)
            .chain(storage)
            .chain(layers)
            .chain(targets)
            .filter_map(|(path, value)| Some((path, value.filter(is_bad)?)));
        bad.map(|(path, value)| {
            let problem = Problem::new(
                "kiln::plan::parameter",
                format!("{value} is no limit: it is not zero or above"),
            );
            ParamProblem { path, problem }
        })
        .chain(on_device::check(
            &params.device,
            &params.runner,
            params.answer_tokens,
            slots.contains(&"bundles"),
        ))
        .chain(SLOTS.iter().all(|slot| !slots.contains(slot)).then(nothing))
        .collect()
    }

    /// A device does not give the same figures twice.
    fn is_volatile(params: &Params) -> bool {
        !params.device.is_empty()
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Limited>>> {
        let of = |slot, param| Stages {
            slot,
            param,
            given: inputs.many(slot),
        };
        let candidates = of("scores", "limits")
            .each(params.limits, |_, limits| Ok(limits.unwrap_or_default()))?;
        let sizes = of("size", "size_bytes").each(params.size_bytes, |manifest, limit| {
            Ok(Size {
                bytes: artifact_bytes(manifest),
                limit,
            })
        })?;
        let storage = of("weights", "storage").each(params.storage, |manifest, limits| {
            let parts = manifest.parts.iter();
            let ledger = Ledger::of(
                parts.map(|(name, part)| (name.as_str(), &part.facts, part.content.digest)),
            )?;
            Ok(Storage {
                ledger,
                limits: limits.unwrap_or_default(),
            })
        })?;
        let generated =
            of("generations", "generated").each(params.generated, |_, limit| Ok(limit))?;
        let layers =
            of("layers", "layers_sqnr_db").each(params.layers_sqnr_db, |_, limit| Ok(limit))?;
        let bundles = inputs.many("bundles");
        let Params {
            perplexity,
            range,
            scores_range,
            mask,
            strict,
            targets,
            device,
            runner,
            answer_tokens,
            ..
        } = params;
        let device = (!device.is_empty()).then_some(Device {
            device,
            runner,
            answer_tokens,
        });
        let is_measured = device.is_some();
        let names = || bundles.iter().map(|(name, _)| name.clone()).collect();
        let on_device = (!bundles.is_empty()).then(|| Measuring {
            bundles: names(),
            targets,
            device,
        });
        let inner = InnerLimits {
            range,
            scores_range,
            mask,
        };
        let limited = Limited {
            candidates,
            perplexity,
            inner,
            sizes,
            storage,
            generated,
            layers,
            strict,
            on_device,
        };
        let mut order = Order::new("", limited);
        for (name, manifest) in bundles.iter().filter(|_| is_measured) {
            bundle::check_for_genie(manifest)?;
            let is_taken = |part: &str| on_device::is_needed(part) || part == bundle::SUMS;
            for (part, content) in manifest
                .parts
                .iter()
                .filter(|(part, _)| is_taken(part.as_str()))
            {
                order = order.input(format!("{name}/{part}"), content);
            }
        }
        let read = ["scores", "generations", "layers"]
            .into_iter()
            .flat_map(|slot| inputs.many(slot));
        for (name, manifest) in read {
            for (part, content) in &manifest.parts {
                order = order.input(format!("{name}/{part}"), content);
            }
        }
        Ok(vec![order])
    }

    fn run(limited: Limited, job: &Job) -> Result<Outputs> {
        let Limited {
            candidates,
            perplexity,
            inner,
            sizes,
            storage,
            generated,
            layers,
            strict,
            on_device,
        } = limited;
        let candidates = candidates
            .into_iter()
            .map(|(name, limits)| Ok((name.clone(), read_candidate(job, &name, limits)?)))
            .collect::<Result<_>>()?;
        let (generated, layers) = (
            read_held(job, GENERATION, generated)?,
            read_held(job, LAYERS, layers)?,
        );
        let on_device = on_device
            .map(|measuring| measured(measuring, job))
            .transpose()?;
        let found = Found {
            candidates,
            sizes,
            storage,
            generated,
            layers,
            on_device,
        };
        let report = Report::new(found, perplexity, inner);
        let files = [
            ("report.json", report.json()?),
            ("report.txt", report.to_string()),
        ];
        let part = |(name, text): (&str, String)| {
            Ok((
                PartName::new(name)?,
                job.write(text.as_bytes(), CanonJson::default())?,
            ))
        };
        let outputs = files.into_iter().map(part).collect::<Result<Outputs>>()?;
        if report.passed() || !strict {
            return Ok(outputs);
        }
        let mut problem = Problem::new(
            "kiln::validate::missed",
            format!("a limit of the plan is missed\n\n{report}"),
        )
        .help("better the candidate, or change the limit in the plan");
        problem.left.extend(
            outputs
                .into_iter()
                .map(|(name, part)| (name.to_string(), part.content.digest)),
        );
        Err(problem)
    }
}

/// What is written to a device: all of a bundle; other parts of another artifact describe it.
fn artifact_bytes(manifest: &Manifest) -> u64 {
    let is_bundle = manifest.get(bundle::CONFIG).is_some();
    let goes =
        |name: &str| is_bundle || [".bin", ".dlc"].iter().any(|ending| name.ends_with(ending));
    let shipped = manifest
        .parts
        .iter()
        .filter(|(name, _)| goes(name.as_str()));
    shipped
        .map(|(_, part)| part.content.digest.size_bytes)
        .sum()
}

/// Those that give a report its content.
const SLOTS: [&str; 6] = [
    "scores",
    "generations",
    "layers",
    "bundles",
    "weights",
    "size",
];

fn nothing() -> ParamProblem {
    let problem = Problem::new("kiln::plan::parameter", "there is nothing to report on");
    ParamProblem {
        path: String::new(),
        problem: problem.help("name a `score` stage: `scores = [\"...\"]`"),
    }
}

/// The stages of a slot, and the parameter with what each of them must keep.
struct Stages<'a> {
    slot: &'a str,
    param: &'a str,
    given: &'a [(String, Manifest)],
}

impl Stages<'_> {
    /// What `make` makes of each stage and its limit, if there is one; each limit must be for a
    /// stage of the slot.
    fn each<L, T>(
        &self,
        mut limits: BTreeMap<String, L>,
        make: impl Fn(&Manifest, Option<L>) -> Result<T>,
    ) -> Result<BTreeMap<String, T>> {
        let Stages { slot, param, given } = self;
        let made = given
            .iter()
            .map(|(name, manifest)| Ok((name.clone(), make(manifest, limits.remove(name))?)));
        let made = made.collect::<Result<_>>()?;
        let Some(name) = limits.keys().next() else {
            return Ok(made);
        };
        let known: Vec<&str> = given.iter().map(|(name, _)| name.as_str()).collect();
        Err(Problem::new(
            "kiln::validate::limits",
            format!("`{param}.{name}` is for a stage that is not in `{slot}`"),
        )
        .help(format!("`{slot}` has: {}", known.join(", "))))
    }
}

/// The part `part` of each stage, beside its limit.
fn read_held<T: DeserializeOwned, L>(
    job: &Job,
    part: &str,
    limits: BTreeMap<String, L>,
) -> Result<BTreeMap<String, Held<T, L>>> {
    let read = |(name, limit): (String, L)| {
        let found = read_json(job, &format!("{name}/{part}"))?;
        Ok((name, Held { found, limit }))
    };
    limits.into_iter().map(read).collect()
}

fn read_candidate(job: &Job, name: &str, limits: Limits) -> Result<Candidate> {
    let parts = job
        .inputs()
        .filter_map(|(input, _)| Some((input, input.strip_prefix(name)?.strip_prefix('/')?)));
    let (mut tokens, mut non_finite, mut windows) = (vec![], 0, 0);
    let (mut greedy, mut ranges, mut masks) = (None, None, None);
    for (input, part) in parts {
        if part.starts_with("window-") {
            let window: WindowScore = read_json(job, input)?;
            non_finite += window.non_finite;
            tokens.extend(window.tokens);
            windows += 1;
        } else if part.starts_with("greedy/") {
            let score: GreedyScore = read_json(job, input)?;
            non_finite += score.non_finite;
            greedy = Some(score);
        } else if part == format!("ranges/{MASK}") {
            masks = Some(read_json::<Masks>(job, input)?);
        } else if part.starts_with("ranges/") {
            ranges = Some(read_json::<Ranges>(job, input)?);
        }
    }
    let fidelity = Fidelity::of(&tokens).ok_or_else(|| {
        Problem::new(
            "kiln::validate::scores",
            format!("`{name}` scored {} tokens, too few", tokens.len()),
        )
    })?;
    Ok(Candidate {
        limits,
        windows,
        fidelity,
        non_finite,
        greedy,
        ranges: report::by_kind(&ranges.unwrap_or_default()),
        mask: masks.as_ref().and_then(Mask::of),
    })
}

/// Runs the bundles on the device, one after the other; without one, nothing is known of them.
fn measured(measuring: Measuring, job: &Job) -> Result<OnDevice> {
    let Measuring {
        bundles,
        targets,
        device,
    } = measuring;
    let figures = |name: String| {
        let figures = device
            .as_ref()
            .map_or(Ok(Figures::default()), |device| device.measure(&name, job));
        Ok((name, figures?))
    };
    let bundles = bundles.into_iter().map(figures).collect::<Result<_>>()?;
    Ok(OnDevice {
        device: device.map(|device| device.device),
        bundles,
        targets,
    })
}

fn read_json<T: DeserializeOwned>(job: &Job, input: &str) -> Result<T> {
    serde_json::from_slice(&job.read(input)?)
        .context("kiln::validate::scores", || format!("read `{input}`"))
}
