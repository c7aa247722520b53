//! `requant`: the weights in the form that graph and device hold them, one part a tensor. By default nothing is rounded.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bands::{self, Blobs};
use super::tensors::{self, Tensor};
use crate::action::{InputSpec, Inputs, Job, Order, Outputs, ParamProblem, Part, PartName, StageSpec, TypedStage};
use crate::base::{CanonJson, Problem, Result};
use crate::model::facts::{Element, ErrorFacts, ModelFacts, RopeRows, TensorFacts, WeightFacts};
use crate::model::quant::{BlockTensor, ErrorSum, GridLayout, Int8Blocks, RowOrder, Spelling};

/// The stage.
pub struct Requant;

/// The stage's table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// For the matrices that no override matches.
    #[serde(default)]
    scheme: Scheme,
    /// Exceptions; the last that matches a tensor wins.
    #[serde(rename = "override", default)]
    overrides: Vec<Override>,
}

/// An exception from the scheme.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Override {
    /// Pattern of tensor names: `blk.*.ffn_down.weight`.
    #[serde(rename = "match")]
    pattern: String,
    /// For the matrices that it matches.
    scheme: Scheme,
}

/// How a matrix is held. Vectors (norms, biases) are f32 values under every scheme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Scheme {
    /// The block grid of the GGUF itself; values unchanged where it has none.
    #[default]
    Native,
    /// Values as halves.
    F16,
    /// Signed bytes, with a half as scale for each 32 values of a row.
    Int8Block,
}

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Scheme::Native => "native",
            Scheme::F16 => "f16",
            Scheme::Int8Block => "int8-block",
        }
    }
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
        version: 1,
        summary: "weights as graph and device hold them: native, f16 or int8-block",
        gives: "weights",
        inputs: &[InputSpec { name: "tensors", accepts: &["model"], required: true, many: false }],
        params: &["scheme", "override"],
        keyed: &[],
        reaches_outside: false,
    };

    fn check(params: &Params, _: &[&str]) -> Vec<ParamProblem> {
        let path = |index| format!("override/{index}/match");
        let overrides = params.overrides.iter().enumerate();
        overrides.filter_map(|(index, rule)| tensors::check_pattern(&rule.pattern, path(index))).collect()
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<RequantOrder>>> {
        let model = inputs.one("tensors")?;
        let facts: ModelFacts = model.part("model.json")?.facts.read()?;
        let tensors = tensors::all(model)?;
        let mut schemes = vec![params.scheme; tensors.len()];
        for Override { pattern, scheme } in &params.overrides {
            let matcher = tensors::pattern(pattern)?;
            let mut matches = 0;
            for (tensor, own) in tensors.iter().zip(&mut schemes).filter(|(tensor, _)| matcher.is_match(tensor.name)) {
                *own = *scheme;
                matches += usize::from(tensor.is_matrix());
            }
            if matches == 0 {
                return Err(tensors::unmatched(pattern, "matrix", &tensors));
            }
        }
        let order = |(tensor, scheme): (&Tensor, Scheme)| {
            // What does not matter to a tensor must not be in its key.
            let scheme = if tensor.is_matrix() { scheme } else { Scheme::Native };
            refuse_uneven(tensor, scheme)?;
            let order = RequantOrder { scheme, rope_heads: rope_heads(&facts, tensor.name) };
            Ok(Order::new(tensor.name, order).input(bands::INPUT, tensor.part).demand(bands::demand(&tensor.facts)))
        };
        tensors.iter().zip(schemes).map(order).collect()
    }

    fn run(order: RequantOrder, job: &Job) -> Result<Outputs> {
        let facts: TensorFacts = job.input(bands::INPUT)?.facts.read()?;
        let bytes = job.read(bands::INPUT)?;
        let rows = order.rope_heads.map_or(RowOrder::Stored, |heads| RowOrder::HalfSplit { heads });
        let tensor = BlockTensor::new(&facts, &bytes, rows)?;
        let values = |element| {
            let (blobs, sum) = bands::write_values(job, &bytes, &tensor, element)?;
            Ok((Form::Values(element), blobs, sum))
        };
        let (form, blobs, sum) = match (order.scheme, tensor.format().spelling()) {
            _ if facts.shape.len() == 1 => values(Element::F32)?,
            (Scheme::Native, Spelling::Values(element)) => values(element)?,
            (Scheme::Native, Spelling::Wide(_)) => values(Element::F32)?,
            (Scheme::Native, Spelling::Blocks(grid)) => {
                (Form::Blocks(grid.layout()), bands::write_split(job, &bytes, &tensor, grid)?, ErrorSum::default())
            }
            (Scheme::F16, _) => values(Element::F16)?,
            (Scheme::Int8Block, _) => {
                let (blobs, sum) = bands::write_rounded(job, &bytes, &tensor, &Int8Blocks, "8-bit codes under a half")?;
                (Form::Blocks(Int8Blocks::LAYOUT), blobs, sum)
            }
        };
        outputs(&facts.shape, form, blobs, bands::error_facts(&tensor, order.scheme.name(), sum))
    }
}

/// What the blobs of a tensor are.
enum Form {
    Values(Element),
    Blocks(GridLayout),
}

fn outputs(shape: &[u64], form: Form, blobs: Blobs, error: ErrorFacts) -> Result<Outputs> {
    let facts = |element| WeightFacts { shape: shape.into(), element, block: None, error: None };
    let (names, facts) = match form {
        Form::Values(element) => {
            (["values", "", ""], [Some(WeightFacts { error: Some(error), ..facts(element) }), None, None])
        }
        Form::Blocks(layout) => {
            let codes = WeightFacts { block: Some(layout.block), error: Some(error), ..facts(layout.codes) };
            let mut per_block = shape.to_vec();
            per_block.iter_mut().skip(1).for_each(|columns| *columns /= u64::from(layout.block));
            let numbers = |element| WeightFacts { shape: per_block.clone(), ..facts(element) };
            (["codes", "scales", "offsets"], [Some(codes), Some(numbers(layout.scales)), layout.offsets.map(numbers)])
        }
    };
    let parts = names.into_iter().zip(blobs.into_iter().zip(facts));
    parts
        .filter_map(|(name, (content, facts))| Some((name, content?, facts?)))
        .map(|(name, content, facts)| Ok((PartName::new(name)?, Part { content, facts: CanonJson::of(&facts)? })))
        .collect()
}

/// Heads of the tensors whose rows a `llama` file permutes for interleaved RoPE: q and k, and their biases.
pub(super) fn rope_heads(model: &ModelFacts, name: &str) -> Option<u32> {
    if model.rope_rows == RopeRows::HalfSplit {
        return None;
    }
    match name.rsplit('.').nth(1)? {
        "attn_q" => Some(model.heads),
        "attn_k" => Some(model.kv_heads),
        _ => None,
    }
}

fn refuse_uneven(tensor: &Tensor, scheme: Scheme) -> Result<()> {
    let columns = tensor.facts.shape.last().copied().unwrap_or(0);
    let block = u64::from(Int8Blocks::LAYOUT.block);
    if scheme != Scheme::Int8Block || columns.is_multiple_of(block) {
        return Ok(());
    }
    let what =
        format!("tensor `{}` has {columns} columns, no multiple of the blocks of {block} of int8-block", tensor.name);
    Err(Problem::new("kiln::weights::columns", what).help("add an override with scheme `f16` or `native` for it"))
}
