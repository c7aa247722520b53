//! The dialect: what has a meaning of its own on the device is one function of the model in domain
//! `kiln`, whose body is standard ONNX. A runtime sees standard operators; a lowering sees one call
//! (`docs/artifacts.md`).

use super::proto::{
    AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, attribute_type, element,
};
use crate::model::weight::WeightForm;

/// The domain of the functions.
pub const DOMAIN: &str = "kiln";
/// The version of that domain.
pub const DOMAIN_VERSION: i64 = 1;
/// The version of the standard operators: the first with int4 and blocked DequantizeLinear.
pub const OPSET: i64 = 21;

/// A function of the dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Function {
    /// `(x, gamma)`: `x / sqrt(mean(x^2) + epsilon) * gamma` over the last axis.
    RmsNorm,
    /// `(x, W...[, bias])`: `(x W^T + bias) * gain`.
    Linear {
        /// Which parts W has, each an input.
        weight: WeightForm,
        /// Whether the last input is a bias.
        bias: bool,
    },
    /// `(ids, W...)`: the rows `ids` of W, times `gain`.
    Embedding {
        /// Which parts W has, each an input.
        weight: WeightForm,
    },
}

/// What comes before `Linear` and `Embedding` in the names of the functions.
fn prefix(weight: WeightForm) -> &'static str {
    match weight {
        WeightForm::Plain => "",
        WeightForm::Block => "Block",
        WeightForm::BlockOffset => "BlockOffset",
        WeightForm::Lpbq => "Lpbq",
    }
}

/// The inputs that W is made of.
fn weight_inputs(weight: WeightForm) -> impl Iterator<Item = &'static str> {
    weight.parts().iter().map(|part| part.name())
}

impl Function {
    /// Every function of the dialect.
    pub fn all() -> impl Iterator<Item = Function> {
        let linear = |weight| [false, true].map(|bias| Function::Linear { weight, bias });
        let of_weight = move |weight| {
            linear(weight)
                .into_iter()
                .chain([Function::Embedding { weight }])
        };
        [Function::RmsNorm]
            .into_iter()
            .chain(WeightForm::ALL.into_iter().flat_map(of_weight))
    }

    /// The function that calls of `op_type` in domain `kiln` mean.
    pub fn called(op_type: &str) -> Option<Function> {
        Function::all().find(|function| function.name() == op_type)
    }

    /// The function that `node` calls, if it is one of the dialect.
    pub fn of(node: &NodeProto) -> Option<Function> {
        Function::called(&node.op_type).filter(|_| node.domain == DOMAIN)
    }

    /// `BlockLinearBias`.
    pub fn name(self) -> String {
        match self {
            Function::RmsNorm => "RmsNorm".into(),
            Function::Linear { weight, bias } => {
                format!("{}Linear{}", prefix(weight), if bias { "Bias" } else { "" })
            }
            Function::Embedding { weight } => format!("{}Embedding", prefix(weight)),
        }
    }

    /// Its body.
    pub fn definition(self) -> FunctionProto {
        let (inputs, attributes, body) = match self {
            Function::RmsNorm => (vec!["x", "gamma"], vec!["epsilon"], rms_norm()),
            Function::Linear { weight, bias } => {
                let bias_input = bias.then_some("bias");
                let inputs = ["x"]
                    .into_iter()
                    .chain(weight_inputs(weight))
                    .chain(bias_input)
                    .collect();
                (inputs, weight_attributes(weight), linear(weight, bias))
            }
            Function::Embedding { weight } => {
                let inputs = ["ids"].into_iter().chain(weight_inputs(weight)).collect();
                (inputs, weight_attributes(weight), embedding(weight))
            }
        };
        FunctionProto {
            name: self.name(),
            domain: DOMAIN.into(),
            input: inputs.into_iter().map(String::from).collect(),
            output: vec!["y".into()],
            attribute: attributes.into_iter().map(String::from).collect(),
            node: body,
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: OPSET,
            }],
            ..FunctionProto::default()
        }
    }
}

fn weight_attributes(weight: WeightForm) -> Vec<&'static str> {
    match weight {
        WeightForm::Plain => vec!["gain"],
        WeightForm::Block | WeightForm::BlockOffset | WeightForm::Lpbq => vec!["block", "gain"],
    }
}

fn rms_norm() -> Vec<NodeProto> {
    vec![
        op("Mul", &["x", "x"], "square", vec![]),
        op("Constant", &[], "last", vec![ints("value_ints", vec![-1])]),
        op(
            "ReduceMean",
            &["square", "last"],
            "mean",
            vec![int("keepdims", 1)],
        ),
        op(
            "Constant",
            &[],
            "tiny",
            vec![of_call("value_float", "epsilon", attribute_type::FLOAT)],
        ),
        op("Add", &["mean", "tiny"], "shifted", vec![]),
        op("Sqrt", &["shifted"], "root", vec![]),
        op("Div", &["x", "root"], "normal", vec![]),
        op(
            "Cast",
            &["gamma"],
            "gamma_f32",
            vec![int("to", element::FLOAT.into())],
        ),
        op("Mul", &["normal", "gamma_f32"], "y", vec![]),
    ]
}

fn linear(weight: WeightForm, bias: bool) -> Vec<NodeProto> {
    let mut body = matrix(weight);
    body.push(op(
        "Transpose",
        &["w"],
        "w_t",
        vec![ints("perm", vec![1, 0])],
    ));
    body.push(op(
        "MatMul",
        &["x", "w_t"],
        if bias { "product" } else { "sum" },
        vec![],
    ));
    if bias {
        body.push(op(
            "Cast",
            &["bias"],
            "bias_f32",
            vec![int("to", element::FLOAT.into())],
        ));
        body.push(op("Add", &["product", "bias_f32"], "sum", vec![]));
    }
    body.extend(times_gain("sum"));
    body
}

fn embedding(weight: WeightForm) -> Vec<NodeProto> {
    let mut body = matrix(weight);
    body.push(op("Gather", &["w", "ids"], "rows", vec![int("axis", 0)]));
    body.extend(times_gain("rows"));
    body
}

/// W as `w`, f32, which defines each form. Scales are widened before they are used: f16 products would round.
fn matrix(weight: WeightForm) -> Vec<NodeProto> {
    let widen = |from, to| op("Cast", &[from], to, vec![int("to", element::FLOAT.into())]);
    let dequantize = |to| {
        let block = of_call("block_size", "block", attribute_type::INT);
        op(
            "DequantizeLinear",
            &["codes", "scales_f32"],
            to,
            vec![int("axis", 1), block],
        )
    };
    match weight {
        WeightForm::Plain => vec![widen("values", "w")],
        WeightForm::Block => vec![widen("scales", "scales_f32"), dequantize("w")],
        WeightForm::Lpbq => vec![
            widen("block_scales", "integers"),
            widen("channel_scales", "channels"),
            op("Constant", &[], "last", vec![ints("value_ints", vec![-1])]),
            op(
                "Unsqueeze",
                &["channels", "last"],
                "channel_of_block",
                vec![],
            ),
            op(
                "Mul",
                &["integers", "channel_of_block"],
                "scales_f32",
                vec![],
            ),
            dequantize("w"),
        ],
        // [rows, columns] seen as [rows, blocks, block], so that an offset meets the columns of its
        // block.
        WeightForm::BlockOffset => vec![
            widen("scales", "scales_f32"),
            dequantize("scaled"),
            op("Shape", &["scales"], "grid", vec![]),
            op("Constant", &[], "last", vec![ints("value_ints", vec![-1])]),
            op(
                "Concat",
                &["grid", "last"],
                "blocked_shape",
                vec![int("axis", 0)],
            ),
            op("Reshape", &["scaled", "blocked_shape"], "blocked", vec![]),
            widen("offsets", "offsets_f32"),
            op(
                "Unsqueeze",
                &["offsets_f32", "last"],
                "offset_of_block",
                vec![],
            ),
            op("Add", &["blocked", "offset_of_block"], "shifted", vec![]),
            op("Shape", &["codes"], "flat_shape", vec![]),
            op("Reshape", &["shifted", "flat_shape"], "w", vec![]),
        ],
    }
}

fn times_gain(value: &str) -> [NodeProto; 2] {
    [
        op(
            "Constant",
            &[],
            "gain",
            vec![of_call("value_float", "gain", attribute_type::FLOAT)],
        ),
        op("Mul", &[value, "gain"], "y", vec![]),
    ]
}

fn op(op_type: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op_type.into(),
        input: inputs.iter().map(|name| name.to_string()).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

/// An integer attribute.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        i: Some(value),
        r#type: attribute_type::INT,
        ..AttributeProto::default()
    }
}

/// A list of integers.
pub fn ints(name: &str, values: Vec<i64>) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        ints: values,
        r#type: attribute_type::INTS,
        ..AttributeProto::default()
    }
}

/// A number.
pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        f: Some(value),
        r#type: attribute_type::FLOAT,
        ..AttributeProto::default()
    }
}

/// Inside a body: the attribute `of` of the call.
fn of_call(name: &str, of: &str, r#type: i32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        ref_attr_name: of.into(),
        r#type,
        ..AttributeProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_functions() {
        let names: Vec<String> = Function::all().map(Function::name).collect();
        assert_eq!(
            names.join(" "),
            "RmsNorm Linear LinearBias Embedding BlockLinear BlockLinearBias BlockEmbedding \
             BlockOffsetLinear BlockOffsetLinearBias BlockOffsetEmbedding LpbqLinear \
             LpbqLinearBias LpbqEmbedding"
        );
        for function in Function::all() {
            assert_eq!(Function::called(&function.name()), Some(function));
        }
        assert_eq!(Function::called("Gelu"), None);
    }

    #[test]
    fn every_value_of_a_body_is_made_before_it_is_used() {
        for function in Function::all() {
            let definition = function.definition();
            let mut known = definition.input.clone();
            for node in &definition.node {
                assert!(
                    node.input.iter().all(|name| known.contains(name)),
                    "{} {node:?}",
                    definition.name
                );
                known.extend(node.output.clone());
            }
            assert!(known.contains(&"y".to_string()), "{}", definition.name);
        }
    }
}
