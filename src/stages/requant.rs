//! `requant`: the weights in the form that graph and device hold them, one part a tensor. By
//! default nothing is rounded.

mod encode;
mod scheme;

use schemars::JsonSchema;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};

use crate::action::{
    Demand, Given, InputSpec, Inputs, Job, Manifest, Order, Outputs, ParamProblem, Part, StageSpec,
    TypedStage,
};
use crate::artifact::assignment::{AssignmentFacts, ChosenScheme, OVERRIDES};
use crate::artifact::bands;
use crate::artifact::tensors::{self, Tensor};
use crate::base::{Code, Context, Problem, Result};
use crate::model::decoder::{DecoderSpec, tensors::by_name};
use crate::model::facts::TensorFacts;
use crate::model::quant::{BAND_VALUES, BlockTensor, RowOrder};
use encode::{DIAGONAL, MOMENTS, encode};
use scheme::Scheme;

/// The stage.
pub struct Requant;

/// The parameters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Scheme of the matrices that no override matches.
    #[serde(default)]
    scheme: Scheme,
    /// Exceptions from `scheme`. The last one that matches a tensor wins.
    #[serde(rename = "override", default)]
    #[schemars(extend("default" = []))]
    overrides: Vec<Override>,
}

/// An exception from the scheme.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Override {
    /// Glob pattern of tensor names, for example `blk.*.ffn_down.weight`.
    #[serde(rename = "match")]
    pattern: String,
    /// Scheme of the matrices that it matches; not `auto`.
    scheme: Scheme,
}

/// One tensor.
#[derive(Debug, Serialize, Deserialize)]
pub struct RequantOrder {
    scheme: Scheme,
    /// Heads whose rows go from interleaved to half-split order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_heads: Option<u32>,
}

impl TypedStage for Requant {
    type Params = Params;
    type Order = RequantOrder;

    const SPEC: StageSpec = StageSpec {
        kind: "requant",
        version: 4,
        summary: "weights as graph and device store them: native, or rounded by a scheme",
        output: "weights",
        inputs: &[
            InputSpec {
                name: "tensors",
                meaning: "The model whose tensors are converted.",
                accepts: &["model"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "calibration",
                meaning: "Statistics of the inputs of each matrix, for the schemes that round \
                          with a calibration.",
                accepts: &["calibration"],
                required: false,
                many: false,
            },
            InputSpec {
                name: "assignment",
                meaning: "A scheme for each tensor; given if and only if `scheme` is `auto`.",
                accepts: &["assignment"],
                required: false,
                many: false,
            },
        ],
        params: &["scheme", "override"],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn check(params: &Params, given: &[Given]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        let mut wrong = |path: String, message: &str, help: &str| {
            let problem = Problem::new(Code::PlanParameter, message).help(help);
            problems.push(ParamProblem { path, problem });
        };
        if (params.scheme == Scheme::Auto) != Given::fills(given, "assignment") {
            let help =
                "give both, or neither: a stage of kind `mixed-precision` makes an assignment";
            wrong(
                "scheme".into(),
                "`scheme = \"auto\"` and `assignment` belong together",
                help,
            );
        }
        for (index, _) in params
            .overrides
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.scheme == Scheme::Auto)
        {
            wrong(
                format!("override/{index}/scheme"),
                "`auto` is no scheme of one tensor",
                "name the scheme itself",
            );
        }
        let path = |index| format!("override/{index}/match");
        let overrides = params.overrides.iter().enumerate();
        problems.extend(
            overrides
                .filter_map(|(index, rule)| tensors::check_pattern(&rule.pattern, path(index))),
        );
        problems
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<RequantOrder>>> {
        let model = inputs.one("tensors")?;
        let spec: DecoderSpec = model.part("model.json")?.facts.read()?;
        let of_decoder = by_name(&spec);
        let tensors = tensors::all(model)?;
        let own = if params.scheme == Scheme::Auto {
            Scheme::Native
        } else {
            params.scheme
        };
        let mut schemes = vec![own; tensors.len()];
        let chosen = inputs
            .optional("assignment")
            .map(chosen)
            .transpose()?
            .unwrap_or_default();
        // What the plan itself says comes last, and wins.
        for Override { pattern, scheme } in chosen.iter().chain(&params.overrides) {
            let matcher = tensors::pattern(pattern)?;
            let mut matches = 0;
            for (tensor, own) in tensors
                .iter()
                .zip(&mut schemes)
                .filter(|(tensor, _)| matcher.is_match(tensor.name))
            {
                *own = *scheme;
                matches += usize::from(tensor.is_matrix());
            }
            if matches == 0 {
                return Err(tensors::unmatched(pattern, "matrix", &tensors));
            }
        }
        let calibration = inputs.optional("calibration");
        let order = |(tensor, scheme): (&Tensor, Scheme)| {
            // What does not matter to a tensor must not be in its key.
            let scheme = if tensor.is_matrix() {
                scheme
            } else {
                Scheme::Native
            };
            refuse_uneven(tensor, scheme)?;
            let order = RequantOrder {
                scheme,
                rope_heads: of_decoder
                    .get(tensor.name)
                    .and_then(|tensor| tensor.interleaved_heads),
            };
            let mut order = Order::new(tensor.name, order).input(bands::INPUT, tensor.part);
            order = order.demand(demand(tensor, scheme));
            let given = calibration.filter(|_| scheme.listens());
            let part = |folder: &str| {
                given.and_then(|given| given.get(&format!("{folder}/{}", tensor.name)))
            };
            Ok(match (part(MOMENTS), part(DIAGONAL)) {
                (Some(moments), _) => {
                    order.demand = with_moments(order.demand, moments);
                    order.input(MOMENTS, moments)
                }
                (None, Some(diagonal)) => order.input(DIAGONAL, diagonal),
                (None, None) => order,
            })
        };
        tensors.iter().zip(schemes).map(order).collect()
    }

    fn run(order: RequantOrder, job: &Job) -> Result<Outputs> {
        let facts: TensorFacts = job.input(bands::INPUT)?.facts.read()?;
        let bytes = job.read(bands::INPUT)?;
        let rows = order
            .rope_heads
            .map_or(RowOrder::Stored, |heads| RowOrder::HalfSplit { heads });
        let tensor = BlockTensor::new(&facts, &bytes, rows)?;
        encode(job, &bytes, &tensor, order.scheme, &facts.shape)
    }
}

/// The overrides of a choice.
fn chosen(choice: &Manifest) -> Result<Vec<Override>> {
    let facts: AssignmentFacts = choice.part(OVERRIDES)?.facts.read()?;
    let scheme = |name: &str| -> Result<Scheme> {
        let known = Scheme::deserialize(
            IntoDeserializer::<serde::de::value::Error>::into_deserializer(name),
        );
        known.context(Code::WeightsScheme, || {
            format!("read the scheme `{name}` of the choice")
        })
    };
    let rule = |ChosenScheme {
                    pattern,
                    scheme: name,
                }: ChosenScheme| {
        Ok(Override {
            scheme: scheme(&name)?,
            pattern,
        })
    };
    facts.overrides.into_iter().map(rule).collect()
}

fn refuse_uneven(tensor: &Tensor, scheme: Scheme) -> Result<()> {
    let columns = tensor.facts.shape.last().copied().unwrap_or(0);
    let unit = scheme.unit();
    if columns.is_multiple_of(unit) {
        return Ok(());
    }
    let (name, scheme) = (tensor.name, scheme.name());
    let what =
        format!("tensor `{name}` has {columns} columns, and {scheme} needs a multiple of {unit}");
    Err(Problem::new(Code::WeightsColumns, what)
        .help("add an override with scheme `f16` or `native` for it"))
}

/// Bytes that a value of a band takes beyond what every scheme needs, where whole rows are
/// searched: decoded, by lanes, and in its two versions of codes and errors.
const SEARCH_BYTES: u64 = 32;

fn demand(tensor: &Tensor, scheme: Scheme) -> Demand {
    let demand = bands::demand(&tensor.facts);
    let columns = tensor.facts.shape.last().copied().unwrap_or(0);
    let extra = match (scheme, scheme.rows()) {
        (Scheme::NativeSafe, _) | (_, Some(_)) => {
            columns.max(BAND_VALUES as u64).saturating_mul(SEARCH_BYTES)
        }
        _ => 0,
    };
    Demand {
        memory_bytes: demand.memory_bytes.saturating_add(extra),
        ..demand
    }
}

/// The moments as they are, in order, factored in f64, and the factor.
fn with_moments(demand: Demand, moments: &Part) -> Demand {
    let bytes = moments.content.digest.size_bytes.saturating_mul(5);
    Demand {
        memory_bytes: demand.memory_bytes.saturating_add(bytes),
        ..demand
    }
}
