//! `requant`: writes the weights in the encoding that graph and device use, one part per tensor. By
//! default nothing is rounded. Rows of `attn_q` and `attn_k` in interleaved RoPE order are moved to
//! half-split order, so that later stages know one order only.

mod encode;
mod scheme;

use schemars::JsonSchema;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};
use serde::{Deserialize, Serialize};

use crate::action::{
    Demand, InputSpec, InputStage, Inputs, Job, Manifest, Order, Outputs, ParamProblem, Part,
    StageSpec, TypedStage,
};
use crate::artifact::assignment::{AssignmentFacts, ChosenScheme, OVERRIDES};
use crate::artifact::bands;
use crate::artifact::tensors::{self, Tensor};
use crate::base::{Code, Context, Problem, Result};
use crate::model::decoder::{DecoderSpec, tensors::by_name};
use crate::model::quant::{BAND_VALUES, BlockTensor, RowOrder, TensorFacts};
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
    /// Number of heads whose rows are permuted from interleaved to half-split order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_heads: Option<u32>,
    /// [`ROUNDING`], if the tensor is rounded with a calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rounding: Option<u32>,
}

/// Version of what depends on a calibration: codes, scales and the facts of the error. It is part
/// of the key of those tensors alone, so that a change leaves all others in the cache.
const ROUNDING: u32 = 2;

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

    fn check(params: &Params, given: &[InputStage]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        let mut wrong = |path: String, message: &str, help: &str| {
            let problem = Problem::new(Code::PlanParameter, message).help(help);
            problems.push(ParamProblem { path, problem });
        };
        if (params.scheme == Scheme::Auto) != InputStage::fills(given, "assignment") {
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
        let specs = by_name(&spec);
        let tensors = tensors::all(model)?;
        let calibration = inputs.optional("calibration");
        let mut overrides = match inputs.optional("assignment") {
            Some(assignment) => read_assignment(assignment)?,
            None => vec![],
        };
        // The last one wins, and so those of the plan.
        overrides.extend(params.overrides);
        let schemes = choose_schemes(&tensors, params.scheme, &overrides)?;

        let mut orders = vec![];
        for (tensor, scheme) in tensors.iter().zip(schemes) {
            check_columns(tensor, scheme)?;
            let rope_heads = match specs.get(tensor.name) {
                Some(spec) => spec.interleaved_heads,
                None => None,
            };
            let order = RequantOrder {
                scheme,
                rope_heads,
                rounding: None,
            };
            let mut order = Order::new(tensor.name, order)
                .input(bands::INPUT, tensor.part)
                .demand(demand(tensor, scheme));
            if let Some(calibration) = calibration
                && scheme.uses_calibration()
            {
                order = with_calibration(order, calibration);
            }
            orders.push(order);
        }
        Ok(orders)
    }

    fn run(order: RequantOrder, job: &Job) -> Result<Outputs> {
        let facts: TensorFacts = job.input(bands::INPUT)?.facts.read()?;
        let bytes = job.read(bands::INPUT)?;
        let rows = match order.rope_heads {
            Some(heads) => RowOrder::HalfSplit { heads },
            None => RowOrder::Stored,
        };
        let tensor = BlockTensor::new(&facts, &bytes, rows)?;
        encode(job, &bytes, &tensor, order.scheme, &facts.shape)
    }
}

/// Reads the overrides of an `assignment`.
fn read_assignment(assignment: &Manifest) -> Result<Vec<Override>> {
    let facts: AssignmentFacts = assignment.part(OVERRIDES)?.facts.read()?;
    let mut overrides = vec![];
    for ChosenScheme { pattern, scheme } in facts.overrides {
        let name: StrDeserializer<ValueError> = scheme.as_str().into_deserializer();
        let scheme = Scheme::deserialize(name).context(Code::WeightsScheme, || {
            format!("read the scheme `{scheme}` of the choice")
        })?;
        overrides.push(Override { pattern, scheme });
    }
    Ok(overrides)
}

/// The scheme of each tensor: that of the last override that matches it, otherwise `default`.
fn choose_schemes(
    tensors: &[Tensor],
    default: Scheme,
    overrides: &[Override],
) -> Result<Vec<Scheme>> {
    let default = match default {
        Scheme::Auto => Scheme::Native,
        scheme => scheme,
    };
    let mut schemes = vec![default; tensors.len()];
    for Override { pattern, scheme } in overrides {
        let matcher = tensors::pattern(pattern)?;
        let mut matches = 0;
        for (tensor, chosen) in tensors.iter().zip(&mut schemes) {
            if matcher.is_match(tensor.name) {
                *chosen = *scheme;
                matches += usize::from(tensor.is_matrix());
            }
        }
        if matches == 0 {
            return Err(tensors::unmatched(pattern, "matrix", tensors));
        }
    }
    for (tensor, scheme) in tensors.iter().zip(&mut schemes) {
        // A vector is stored the same under every scheme, so that its key must not depend on it.
        if !tensor.is_matrix() {
            *scheme = Scheme::Native;
        }
    }
    Ok(schemes)
}

/// Adds the moments of the tensor's inputs to `order`, or their diagonal, if `calibration` has any.
fn with_calibration(mut order: Order<RequantOrder>, calibration: &Manifest) -> Order<RequantOrder> {
    if let Some(moments) = calibration.get(&format!("{MOMENTS}/{}", order.name)) {
        order.params.rounding = Some(ROUNDING);
        order.demand = with_moments(order.demand, moments);
        return order.input(MOMENTS, moments);
    }
    if let Some(diagonal) = calibration.get(&format!("{DIAGONAL}/{}", order.name)) {
        order.params.rounding = Some(ROUNDING);
        return order.input(DIAGONAL, diagonal);
    }
    order
}

fn check_columns(tensor: &Tensor, scheme: Scheme) -> Result<()> {
    let columns = tensor.facts.shape.last().copied().unwrap_or(0);
    let unit = scheme.unit();
    if columns.is_multiple_of(unit) {
        return Ok(());
    }
    let (name, scheme) = (tensor.name, scheme.name());
    let what = format!(
        "tensor `{name}` has {columns} columns, not a multiple of {unit}, as {scheme} \
         requires"
    );
    Err(Problem::new(Code::WeightsColumns, what)
        .help("add an override with scheme `f16` or `native` for it"))
}

/// Additional bytes per value of a band for schemes that search the codes of whole rows: the
/// decoded values, the same by lanes, and two versions of codes and errors.
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

/// Adds the memory for the moments: as stored, reordered, in f64 for the factorization, and the
/// factor.
fn with_moments(demand: Demand, moments: &Part) -> Demand {
    let bytes = moments.content.digest.size_bytes.saturating_mul(5);
    Demand {
        memory_bytes: demand.memory_bytes.saturating_add(bytes),
        ..demand
    }
}
