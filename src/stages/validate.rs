//! `validate`: compares the figures of other stages with the plan's limits.
//!
//! `limits.STAGE` are the limits of the stage STAGE of `inputs`. If a missed limit fails the stage,
//! the report is part of the problem, and its files are written nevertheless.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::action::{
    ArtifactKind, InputSpec, InputStage, Inputs, Job, Manifest, Order, Outputs, ParamProblem,
    PartName, StageSpec, TypedStage,
};
use crate::artifact::bundle::CONFIG;
use crate::artifact::device::FIGURES;
use crate::artifact::estimate::ModelEstimate;
use crate::artifact::evaluation::{GreedyScore, MASK, Masks, Ranges, WindowScore};
use crate::artifact::generation::GENERATION;
use crate::artifact::layer_evaluation::LAYERS;
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::fidelity::Fidelity;
use crate::model::quant_report::QuantReport;
use crate::report::{Candidate, Found, KINDS, Limited, Limits, Mask, Range, Report, Size, Storage};

/// The parameters.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The limits of each stage of `inputs`, by its name.
    #[serde(default)]
    limits: BTreeMap<String, Limits>,
    /// Whether a missed limit fails the stage. If `false`, the report only says so.
    #[serde(default = "yes")]
    strict: bool,
}

fn yes() -> bool {
    true
}

/// The stages that are reported on. Sizes, quantization reports and estimates come from manifests,
/// without opening a file.
#[derive(Serialize, Deserialize)]
pub struct ReportOrder {
    strict: bool,
    stages: BTreeMap<String, ReportedStage>,
}

/// One stage that is reported on.
#[derive(Serialize, Deserialize)]
pub struct ReportedStage {
    #[serde(flatten)]
    subject: Subject,
    limits: Limits,
}

/// The artifact of a stage, with the figures that come from its manifest.
#[derive(Serialize, Deserialize)]
#[serde(tag = "artifact", rename_all = "kebab-case")]
enum Subject {
    Evaluation,
    LayerEvaluation,
    Generation,
    DeviceFigures,
    Estimate { estimate: ModelEstimate },
    Weights { report: QuantReport },
    Size { bytes: u64 },
}

/// The stage.
pub struct Validate;

impl TypedStage for Validate {
    type Params = Params;
    type Order = ReportOrder;
    const SPEC: StageSpec = StageSpec {
        kind: "validate",
        version: 5,
        summary: "figures of other stages compared with the plan's limits",
        output: "report",
        inputs: &[InputSpec {
            name: "inputs",
            meaning: "The stages that are reported on and compared with limits.",
            accepts: &const { accepted() },
            required: true,
            many: true,
        }],
        params: &["limits", "strict"],
        keyed: &[("limits", "inputs")],
        reaches_outside: false,
        measures: true,
    };

    fn check(params: &Params, given: &[InputStage]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        for (stage, limits) in &params.limits {
            let Some(given) = given.iter().find(|given| given.stage == *stage) else {
                continue;
            };
            let known = Limits::of_kind(given.artifact);
            for limit in limits.given() {
                if !known.contains(&limit.as_str()) {
                    let what = format!("`{}` has no limit `{limit}`", given.artifact);
                    let help = format!("it has: {}", known.join(", "));
                    problems.push(ParamProblem {
                        path: format!("limits/{stage}/{limit}"),
                        problem: Problem::new(Code::PlanParameter, what).help(help),
                    });
                }
            }
        }
        problems
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<ReportOrder>>> {
        let Params { mut limits, strict } = params;
        let stages = BTreeMap::new();
        let mut order = Order::new("", ReportOrder { strict, stages });
        for (name, manifest) in inputs.many("inputs") {
            let subject = Subject::new(inputs.artifact(name), manifest)?;
            if subject.reads_parts() {
                for (part, content) in &manifest.parts {
                    order = order.input(format!("{name}/{part}"), content);
                }
            }
            let limits = limits.remove(name).unwrap_or_default();
            if let Subject::Estimate { estimate } = &subject {
                check_sums(name, estimate, &limits)?;
            }
            let stage = ReportedStage { subject, limits };
            order.params.stages.insert(name.clone(), stage);
        }
        Ok(vec![order])
    }

    fn run(order: ReportOrder, job: &Job) -> Result<Outputs> {
        let mut found = Found::default();
        for (name, stage) in order.stages {
            stage.report(name, job, &mut found)?;
        }
        let report = Report::new(found);
        let mut outputs = Outputs::new();
        for (name, text) in [
            ("report.json", report.json()?),
            ("report.txt", report.to_string()),
        ] {
            let part = job.write(text.as_bytes(), CanonJson::default())?;
            outputs.insert(PartName::new(name)?, part);
        }
        if report.passed() || !order.strict {
            return Ok(outputs);
        }
        let what = format!("a limit of the plan is missed\n\n{report}");
        let mut problem = Problem::new(Code::ValidateMissed, what)
            .help("better the candidate, or change the limit in the plan");
        for (name, part) in outputs {
            problem.left.insert(name.to_string(), part.content.digest);
        }
        Err(problem)
    }
}

/// Every artifact that has limits.
const fn accepted() -> [ArtifactKind; KINDS.len()] {
    let mut accepted = [""; KINDS.len()];
    let mut index = 0;
    while index < KINDS.len() {
        accepted[index] = KINDS[index].0;
        index += 1;
    }
    accepted
}

impl Subject {
    fn new(artifact: ArtifactKind, manifest: &Manifest) -> Result<Subject> {
        Ok(match artifact {
            "evaluation" => Subject::Evaluation,
            "layer-evaluation" => Subject::LayerEvaluation,
            "generation" => Subject::Generation,
            "device-figures" => Subject::DeviceFigures,
            "estimate" => Subject::Estimate {
                estimate: ModelEstimate::read(manifest)?,
            },
            "weights" => {
                let parts = manifest.parts.iter();
                let parts =
                    parts.map(|(name, part)| (name.as_str(), &part.facts, part.content.digest));
                let report = QuantReport::of(parts)?;
                Subject::Weights { report }
            }
            _ => Subject::Size {
                bytes: artifact_bytes(manifest),
            },
        })
    }

    /// Whether the report reads the stage's parts.
    fn reads_parts(&self) -> bool {
        !matches!(
            self,
            Subject::Estimate { .. } | Subject::Weights { .. } | Subject::Size { .. }
        )
    }
}

impl ReportedStage {
    /// Adds the stage's figures to `found`.
    fn report(self, name: String, job: &Job, found: &mut Found) -> Result<()> {
        let ReportedStage { subject, limits } = self;
        match subject {
            Subject::Evaluation => {
                let limited = Limited {
                    found: read_candidate(job, &name)?,
                    limits,
                };
                found.candidates.insert(name, limited);
            }
            Subject::LayerEvaluation => {
                let limited = Limited {
                    found: read_json(job, &format!("{name}/{LAYERS}"))?,
                    limits,
                };
                found.layers.insert(name, limited);
            }
            Subject::Generation => {
                let limited = Limited {
                    found: read_json(job, &format!("{name}/{GENERATION}"))?,
                    limits,
                };
                found.generated.insert(name, limited);
            }
            Subject::DeviceFigures => {
                let limited = Limited {
                    found: read_json(job, &format!("{name}/{FIGURES}"))?,
                    limits,
                };
                found.devices.insert(name, limited);
            }
            Subject::Estimate { estimate } => {
                let limited = Limited {
                    found: estimate,
                    limits,
                };
                found.estimates.insert(name, limited);
            }
            Subject::Weights { report } => {
                let limited = Limited {
                    found: Storage {
                        quantization: report,
                    },
                    limits,
                };
                found.storage.insert(name, limited);
            }
            Subject::Size { bytes } => {
                let limited = Limited {
                    found: Size { bytes },
                    limits,
                };
                found.sizes.insert(name, limited);
            }
        }
        Ok(())
    }
}

/// Refuses limits for figures that an estimate lacks, because a graph or some shards are missing.
fn check_sums(name: &str, estimate: &ModelEstimate, limits: &Limits) -> Result<()> {
    let sums = &estimate.sums;
    for (limit, is_given, is_found) in [
        (
            "decode_ms",
            limits.decode_ms.is_some(),
            sums.contains_key("decode"),
        ),
        (
            "prefill_ms",
            limits.prefill_ms.is_some(),
            sums.contains_key("prefill"),
        ),
        (
            "spill_bytes",
            limits.spill_bytes.is_some(),
            !sums.is_empty(),
        ),
    ] {
        if is_given && !is_found {
            let what = format!("`{name}` has no sum for the limit `{limit}`");
            return Err(Problem::new(Code::ValidateEstimate, what).help(
                "let the `estimate` stage take all shards (no `sample`) and this graph, or remove \
                 the limit",
            ));
        }
    }
    Ok(())
}

/// The bytes that a device needs: all files of a bundle, the binaries of another artifact.
fn artifact_bytes(manifest: &Manifest) -> u64 {
    let is_bundle = manifest.get(CONFIG).is_some();
    let mut bytes = 0;
    for (name, part) in &manifest.parts {
        let name = name.as_str();
        if is_bundle || name.ends_with(".bin") || name.ends_with(".dlc") {
            bytes += part.content.digest.size_bytes;
        }
    }
    bytes
}

fn read_candidate(job: &Job, name: &str) -> Result<Candidate> {
    let (mut tokens, mut non_finite, mut windows) = (vec![], 0, 0);
    let (mut greedy, mut ranges, mut masks) = (None, Ranges::new(), None);
    for (input, _) in job.inputs() {
        let Some((stage, part)) = input.split_once('/') else {
            continue;
        };
        if stage != name {
            continue;
        }
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
            ranges = read_json(job, input)?;
        }
    }
    let Some(fidelity) = Fidelity::of(&tokens) else {
        let what = format!("`{name}` evaluated {} tokens, too few", tokens.len());
        return Err(Problem::new(Code::ValidateScores, what));
    };
    Ok(Candidate {
        windows,
        fidelity,
        non_finite,
        greedy,
        ranges: Range::by_kind(&ranges),
        mask: masks.as_ref().and_then(Mask::of),
    })
}

fn read_json<T: DeserializeOwned>(job: &Job, input: &str) -> Result<T> {
    serde_json::from_slice(&job.read(input)?)
        .context(Code::ValidateScores, || format!("read `{input}`"))
}
