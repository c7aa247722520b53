//! `dequant`: writes tensors as plain numbers, bit-equal to ggml before any rounding to 16 bits.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{
    InputSpec, InputStage, Inputs, Job, Order, Outputs, ParamProblem, StageSpec, TypedStage,
};
use crate::artifact::{bands, tensors};
use crate::base::Result;
use crate::model::quant::{BlockTensor, RowOrder, TensorFacts};
use crate::model::weight::{Element, WeightEncoding};

/// The stage.
pub struct Dequant;

/// The stage's table.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Number type of the values.
    #[serde(rename = "type", default)]
    to: Number,
    /// Glob patterns of tensor names. By default all tensors.
    #[serde(rename = "match", default)]
    patterns: Vec<String>,
}

/// One tensor.
#[derive(Debug, Serialize, Deserialize)]
pub struct DequantOrder {
    #[serde(rename = "type")]
    to: Number,
}

/// A kind of plain number.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Number {
    #[default]
    F32,
    F16,
    Bf16,
}

impl TypedStage for Dequant {
    type Params = Params;
    type Order = DequantOrder;

    const SPEC: StageSpec = StageSpec {
        kind: "dequant",
        version: 2,
        summary: "tensors as plain numbers: f32, f16 or bf16",
        output: "plain",
        inputs: &[InputSpec {
            name: "model",
            meaning: "The model whose tensors are dequantized.",
            accepts: &["model"],
            required: true,
            many: false,
        }],
        params: &["type", "match"],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn check(params: &Params, _: &[InputStage]) -> Vec<ParamProblem> {
        let path = |index| format!("match/{index}");
        params
            .patterns
            .iter()
            .enumerate()
            .filter_map(|(index, text)| tensors::check_pattern(text, path(index)))
            .collect()
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<DequantOrder>>> {
        let model_tensors = tensors::all(inputs.one("model")?)?;
        let mut is_chosen = vec![params.patterns.is_empty(); model_tensors.len()];
        for text in &params.patterns {
            let matcher = tensors::pattern(text)?;
            let mut matches = 0;
            for (tensor, is_chosen) in model_tensors.iter().zip(&mut is_chosen) {
                if matcher.is_match(tensor.name) {
                    *is_chosen = true;
                    matches += 1;
                }
            }
            if matches == 0 {
                return Err(tensors::unmatched(text, "tensor", &model_tensors));
            }
        }
        let mut orders = vec![];
        for (tensor, is_chosen) in model_tensors.iter().zip(is_chosen) {
            if is_chosen {
                let order = Order::new(tensor.name, DequantOrder { to: params.to })
                    .input(bands::INPUT, tensor.part)
                    .demand(bands::demand(&tensor.facts));
                orders.push(order);
            }
        }
        Ok(orders)
    }

    fn run(order: DequantOrder, job: &Job) -> Result<Outputs> {
        let (element, name) = match order.to {
            Number::F32 => (Element::F32, "f32"),
            Number::F16 => (Element::F16, "f16"),
            Number::Bf16 => (Element::Bf16, "bf16"),
        };
        let facts: TensorFacts = job.input(bands::INPUT)?.facts.read()?;
        let bytes = job.read(bands::INPUT)?;
        let tensor = BlockTensor::new(&facts, &bytes, RowOrder::Stored)?;
        let (blobs, error) = bands::write_values(job, &bytes, &tensor, element)?;
        let error = bands::error_facts(&tensor, name, error);
        bands::outputs(
            &facts.shape,
            WeightEncoding::Plain { element },
            blobs,
            error,
        )
    }
}
