//! The ONNX dialect: each operation that the device implements as one operator is a model-local
//! function in domain `kiln` with a body of standard operators. A runtime executes the body; the
//! lowering reads the call (`docs/artifacts.md`).

use super::proto::{
    AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, attribute_type, element,
};
use crate::model::weight::WeightForm;

/// The domain of the functions.
pub const DOMAIN: &str = "kiln";
/// The version of that domain.
pub(super) const DOMAIN_VERSION: i64 = 1;
/// The version of the standard operators: the first with int4 and blocked DequantizeLinear.
pub(super) const OPSET: i64 = 21;

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

/// The prefix of `Linear` and `Embedding` in the names of the functions.
fn prefix(weight: WeightForm) -> &'static str {
    match weight {
        WeightForm::Plain => "",
        WeightForm::Block => "Block",
        WeightForm::BlockOffset => "BlockOffset",
        WeightForm::Lpbq => "Lpbq",
    }
}

impl Function {
    /// Every function of the dialect.
    pub fn all() -> Vec<Function> {
        let mut all = vec![Function::RmsNorm];
        for weight in WeightForm::ALL {
            let bias = false;
            all.push(Function::Linear { weight, bias });
            let bias = true;
            all.push(Function::Linear { weight, bias });
            all.push(Function::Embedding { weight });
        }
        all
    }

    /// The function with this name in domain `kiln`.
    pub fn by_name(name: &str) -> Option<Function> {
        let mut all = Function::all().into_iter();
        all.find(|function| function.name() == name)
    }

    /// The function that `node` calls; `None` if it calls none of the dialect.
    pub fn of(node: &NodeProto) -> Option<Function> {
        if node.domain != DOMAIN {
            return None;
        }
        Function::by_name(&node.op_type)
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

    /// Its inputs, attributes and body.
    pub fn definition(self) -> FunctionProto {
        let (inputs, attributes, body) = match self {
            Function::RmsNorm => (vec!["x", "gamma"], vec!["epsilon"], rms_norm()),
            Function::Linear { weight, bias } => {
                let mut inputs = with_weight_inputs("x", weight);
                if bias {
                    inputs.push("bias");
                }
                (inputs, weight_attributes(weight), linear(weight, bias))
            }
            Function::Embedding { weight } => (
                with_weight_inputs("ids", weight),
                weight_attributes(weight),
                embedding(weight),
            ),
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

/// `first` and the parts of W.
fn with_weight_inputs(first: &'static str, weight: WeightForm) -> Vec<&'static str> {
    let mut inputs = vec![first];
    for part in weight.parts() {
        inputs.push(part.name());
    }
    inputs
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
        widen("gamma", "gamma_f32"),
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
        body.push(widen("bias", "bias_f32"));
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

/// W as `w`, f32: the definition of each form. Scales are cast to f32 before they are used, because
/// f16 products would round.
fn matrix(weight: WeightForm) -> Vec<NodeProto> {
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
        // W is reshaped from [rows, columns] to [rows, blocks, block], so that an offset is added
        // to the columns of its block.
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

fn widen(from: &str, to: &str) -> NodeProto {
    op("Cast", &[from], to, vec![int("to", element::FLOAT.into())])
}

fn dequantize(to: &str) -> NodeProto {
    let block = of_call("block_size", "block", attribute_type::INT);
    op(
        "DequantizeLinear",
        &["codes", "scales_f32"],
        to,
        vec![int("axis", 1), block],
    )
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

/// Inside a body: the value of attribute `call_attribute` of the call.
fn of_call(name: &str, call_attribute: &str, r#type: i32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        ref_attr_name: call_attribute.into(),
        r#type,
        ..AttributeProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_by_name() {
        let names: Vec<String> = Function::all().into_iter().map(Function::name).collect();
        assert_eq!(
            names.join(" "),
            "RmsNorm Linear LinearBias Embedding BlockLinear BlockLinearBias BlockEmbedding \
             BlockOffsetLinear BlockOffsetLinearBias BlockOffsetEmbedding LpbqLinear \
             LpbqLinearBias LpbqEmbedding"
        );
        for function in Function::all() {
            assert_eq!(Function::by_name(&function.name()), Some(function));
        }
        assert_eq!(Function::by_name("Gelu"), None);
    }

    #[test]
    fn every_value_of_a_body_is_computed_before_it_is_used() {
        for function in Function::all() {
            let definition = function.definition();
            let mut computed = definition.input.clone();
            for node in &definition.node {
                for name in &node.input {
                    assert!(computed.contains(name), "{} {node:?}", definition.name);
                }
                computed.extend(node.output.clone());
            }
            assert!(computed.contains(&"y".to_string()), "{}", definition.name);
        }
    }
}
