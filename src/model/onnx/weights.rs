//! The encoding of a weight as a graph states it: by the function that is called, its attribute
//! `block`, and the types of its constants. This is the one place that reads it.

use std::collections::BTreeSet;

use super::functions::Function;
use super::proto::{ModelProto, NodeProto, TensorProto, element};
use super::{Checked, Encodings, element_name};
use crate::base::{Code, Problem, Result};
use crate::model::weight::{
    Activations, Element, WeightEncoding, WeightForm, WeightPart, WeightUse,
};

/// What was read, or what the node does wrong.
type Read<T> = std::result::Result<T, String>;

/// A call that computes with a weight matrix.
pub struct WeightCall<'a> {
    /// How the weight is stored.
    pub encoding: WeightEncoding,
    /// Its shape.
    pub rows: u64,
    /// Its shape.
    pub columns: u64,
    /// The constants that hold its parts.
    parts: Vec<(WeightPart, &'a TensorProto)>,
    /// What is added to each product, one number for each row.
    pub bias: Option<&'a TensorProto>,
    /// What the result is multiplied by.
    pub gain: f32,
}

impl<'a> WeightCall<'a> {
    /// The weight of `node`, a call of `Linear`, `Embedding` or one of their kind. `Err` says what
    /// the node does wrong.
    pub fn of(checked: &Checked<'a>, node: &'a NodeProto) -> Read<Self> {
        let (form, has_bias) = match Function::of(node) {
            Some(Function::Linear { weight, bias }) => (weight, bias),
            Some(Function::Embedding { weight }) => (weight, false),
            Some(Function::RmsNorm) | None => return Err("computes with no weight".into()),
        };
        let mut parts = vec![];
        let mut elements = vec![];
        for (index, &part) in (1..).zip(form.parts()) {
            let tensor = constant(checked, node, index)?;
            parts.push((part, tensor));
            elements.push(stored_element(tensor)?);
        }
        let &[rows, columns] = shape(checked, parts[0].1) else {
            return Err("wants a matrix as its weight".into());
        };
        let encoding = encoding(form, &elements, node, columns)?;
        let specs = encoding
            .parts(&[rows, columns])
            .map_err(|why| format!("has a weight that does not exist: {why}"))?;
        for (spec, ((_, tensor), found)) in specs.iter().zip(parts.iter().zip(&elements)) {
            let dims = shape(checked, tensor);
            if spec.element != *found || spec.shape != dims {
                return Err(format!(
                    "wants {} as {} {:?}, but `{}` is {} {dims:?}",
                    spec.part.name(),
                    spec.element.name(),
                    spec.shape,
                    tensor.name,
                    found.name()
                ));
            }
        }
        let bias = match has_bias {
            true => Some(bias(checked, node, 1 + parts.len(), rows)?),
            false => None,
        };
        Ok(WeightCall {
            encoding,
            rows,
            columns,
            parts,
            bias,
            gain: number(node, "gain")?,
        })
    }

    /// The constant that holds `part`, if the encoding has it.
    pub fn part(&self, part: WeightPart) -> Option<&'a TensorProto> {
        let found = self.parts.iter().find(|(known, _)| *known == part);
        found.map(|(_, tensor)| *tensor)
    }

    /// The constant that has an element for each value.
    pub fn main(&self) -> &'a TensorProto {
        self.parts[0].1
    }
}

/// What the graph of `model` does with weight matrices, each once.
pub fn weight_uses(model: &ModelProto) -> Result<Vec<WeightUse>> {
    let checked = Checked::new(model)?;
    let encodings = Encodings::of(&checked)?;
    let mut uses = BTreeSet::new();
    for node in &checked.graph.node {
        let wrong = |why: String| {
            let message = format!("node `{}` ({}) {why}", node.name, node.op_type);
            Problem::new(Code::OnnxWeight, message)
        };
        match Function::of(node) {
            Some(Function::Linear { .. }) => {
                let weight = WeightCall::of(&checked, node).map_err(wrong)?.encoding;
                let activations = activations(&encodings, node).map_err(wrong)?;
                uses.insert(WeightUse::Linear {
                    weight,
                    activations,
                });
            }
            Some(Function::Embedding { .. }) => {
                let weight = WeightCall::of(&checked, node).map_err(wrong)?.encoding;
                uses.insert(WeightUse::Lookup { weight });
            }
            Some(Function::RmsNorm) | None => {}
        }
    }
    Ok(uses.into_iter().collect())
}

/// How the activations are held that the linear layer `node` reads.
fn activations(encodings: &Encodings, node: &NodeProto) -> Read<Activations> {
    let grid = node
        .input
        .first()
        .and_then(|x| encodings.grids.get(x.as_str()));
    match grid.map(|grid| grid.bits) {
        None => Ok(Activations::F16),
        Some(16) => Ok(Activations::U16),
        Some(bits) => Err(format!("reads activations in {bits} bits")),
    }
}

/// The encoding that `form` and the types of its inputs make.
fn encoding(
    form: WeightForm,
    elements: &[Element],
    node: &NodeProto,
    columns: u64,
) -> Read<WeightEncoding> {
    let blocks = |codes, scales, offsets| {
        let block = block(node)?;
        Ok(WeightEncoding::blocks(
            codes, block, scales, offsets, columns,
        ))
    };
    match (form, elements) {
        (WeightForm::Plain, &[element]) => Ok(WeightEncoding::Plain { element }),
        (WeightForm::Block, &[codes, scales]) => blocks(codes, scales, None),
        (WeightForm::BlockOffset, &[codes, scales, offsets]) => {
            blocks(codes, scales, Some(offsets))
        }
        (WeightForm::Lpbq, _) => Ok(WeightEncoding::Lpbq {
            block: block(node)?,
        }),
        _ => Err(format!("has {} inputs for its weight", elements.len())),
    }
}

fn block(node: &NodeProto) -> Read<u32> {
    let attribute = node.attribute.iter().find(|found| found.name == "block");
    let block = attribute
        .and_then(|attribute| attribute.i)
        .ok_or("lacks the integer `block`")?;
    u32::try_from(block).map_err(|_| format!("has blocks of {block}"))
}

fn number(node: &NodeProto, name: &str) -> Read<f32> {
    let attribute = node.attribute.iter().find(|found| found.name == name);
    attribute
        .and_then(|attribute| attribute.f)
        .ok_or_else(|| format!("lacks the number `{name}`"))
}

fn bias<'a>(
    checked: &Checked<'a>,
    node: &NodeProto,
    index: usize,
    rows: u64,
) -> Read<&'a TensorProto> {
    let bias = constant(checked, node, index)?;
    if shape(checked, bias) != [rows] || !stored_element(bias)?.is_float() {
        return Err(format!("wants {rows} numbers as its bias"));
    }
    Ok(bias)
}

fn constant<'a>(checked: &Checked<'a>, node: &NodeProto, index: usize) -> Read<&'a TensorProto> {
    let name = node
        .input
        .get(index)
        .ok_or_else(|| format!("has no input {index}"))?;
    let found = checked.initializers.get(name.as_str()).copied();
    found.ok_or_else(|| format!("reads `{name}`, which must be a constant"))
}

fn shape<'c>(checked: &'c Checked, tensor: &TensorProto) -> &'c [u64] {
    let found = checked.types.get(tensor.name.as_str());
    found.map_or(&[], |found| found.dims.as_slice())
}

fn stored_element(tensor: &TensorProto) -> Read<Element> {
    element_of(tensor.data_type).ok_or_else(|| {
        format!(
            "reads `{}`, whose type {} no weight has",
            tensor.name,
            element_name(tensor.data_type)
        )
    })
}

/// ONNX's number of an element type.
pub fn element_type(element: Element) -> i32 {
    match element {
        Element::F32 => element::FLOAT,
        Element::F16 => element::FLOAT16,
        Element::Bf16 => element::BFLOAT16,
        Element::Int8 => element::INT8,
        Element::Uint8 => element::UINT8,
        Element::Int4 => element::INT4,
        Element::Uint4 => element::UINT4,
    }
}

/// The element type that ONNX gives this number, if weights can have it.
pub fn element_of(onnx: i32) -> Option<Element> {
    const ALL: [Element; 7] = [
        Element::F32,
        Element::F16,
        Element::Bf16,
        Element::Int8,
        Element::Uint8,
        Element::Int4,
        Element::Uint4,
    ];
    ALL.into_iter()
        .find(|element| element_type(*element) == onnx)
}

#[cfg(test)]
mod tests {
    use super::super::{Builder, External, Grid, Value, gain, int};
    use super::*;

    /// A graph of one linear layer over 64 columns, `x` on a grid of so many bits if that is given.
    /// Its constants are (part, type, dims).
    fn linear(
        form: WeightForm,
        block: Option<i64>,
        parts: &[(&str, Element, &[u64])],
        bits: Option<u32>,
    ) -> ModelProto {
        let grids = bits.map(|bits| ("x".to_string(), Grid::unit(bits)));
        let mut builder = Builder::rounding(grids.into_iter().collect());
        let mut inputs: Vec<Value> = vec![builder.input("x", element::FLOAT, &[1, 1, 2, 64])];
        for (name, element, dims) in parts {
            inputs.push(builder.external(&External {
                // Names say nothing.
                name: &format!("w/anything-{name}"),
                location: format!("weights/{name}"),
                element: element_type(*element),
                dims,
                size_bytes: 1,
            }));
        }
        let function = Function::Linear {
            weight: form,
            bias: false,
        };
        let inputs: Vec<&Value> = inputs.iter().collect();
        let attributes = block.map(|block| int("block", block));
        let attributes = attributes.into_iter().chain([gain(0)]).collect();
        let y = builder.call(function, "y", &inputs, attributes, vec![1, 1, 2, 4]);
        builder.output(&y);
        builder.finish("g")
    }

    #[track_caller]
    fn check(model: ModelProto, expected: std::result::Result<(&str, Activations), &str>) {
        let found = weight_uses(&model).map_err(|problem| problem.message);
        let found = found.map(|uses| match uses.as_slice() {
            [
                WeightUse::Linear {
                    weight,
                    activations,
                },
            ] => (weight.to_string(), *activations),
            other => panic!("{other:?}"),
        });
        let expected = expected.map(|(weight, activations)| (weight.to_string(), activations));
        assert_eq!(found, expected.map_err(String::from));
    }

    #[test]
    fn the_call_says_how_a_weight_is_stored() {
        use Activations::{F16, U16};
        let values: [(&str, Element, &[u64]); 1] = [("v", Element::Bf16, &[4, 64])];
        check(
            linear(WeightForm::Plain, None, &values, None),
            Ok(("bf16", F16)),
        );
        let blocks = |scales, blocks: &'static [u64; 2]| -> [(&str, Element, &[u64]); 2] {
            [("c", Element::Int4, &[4, 64]), ("s", scales, blocks)]
        };
        let of_16 = blocks(Element::F16, &[4, 4]);
        check(
            linear(WeightForm::Block, Some(16), &of_16, Some(16)),
            Ok(("int4 x16 f16", U16)),
        );
        let of_row = blocks(Element::F32, &[4, 1]);
        check(
            linear(WeightForm::Block, Some(64), &of_row, None),
            Ok(("int4 by channel", F16)),
        );
        let lpbq: [(&str, Element, &[u64]); 3] = [
            ("c", Element::Int4, &[4, 64]),
            ("b", Element::Uint8, &[4, 2]),
            ("r", Element::F32, &[4]),
        ];
        check(
            linear(WeightForm::Lpbq, Some(32), &lpbq, None),
            Ok(("lpbq x32", F16)),
        );
    }

    #[test]
    fn what_contradicts_the_call_is_refused() {
        let codes: (&str, Element, &[u64]) = ("c", Element::Int4, &[4, 64]);
        let scales: (&str, Element, &[u64]) = ("s", Element::F16, &[4, 2]);
        check(
            linear(WeightForm::Block, Some(16), &[codes, scales], None),
            Err(
                "node `y` (BlockLinear) wants scales as f16 [4, 4], but `w/anything-s` is f16 \
                 [4, 2]",
            ),
        );
        check(
            linear(WeightForm::Block, Some(24), &[codes, scales], None),
            Err(
                "node `y` (BlockLinear) has a weight that does not exist: 64 columns are not \
                 whole blocks of 24",
            ),
        );
        check(
            linear(WeightForm::Block, None, &[codes, scales], None),
            Err("node `y` (BlockLinear) lacks the integer `block`"),
        );
        check(
            linear(WeightForm::Block, Some(32), &[codes, scales], Some(8)),
            Err("node `y` (BlockLinear) reads activations in 8 bits"),
        );
    }
}
