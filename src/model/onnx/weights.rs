//! Reads the encoding of a weight from a graph: from the function that is called, its attribute
//! `block`, and the types of its constants. No other module does so.

use std::collections::BTreeSet;

use super::functions::Function;
use super::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, element};
use super::{Checked, Encodings, Grid, element_name};
use crate::base::{Code, Problem, Result};
use crate::model::weight::{
    Activations, Element, WeightEncoding, WeightForm, WeightPart, WeightUse,
};

/// An error is the predicate of a sentence about the node: `lacks the integer `block``.
type NodeResult<T> = std::result::Result<T, String>;

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
    /// Added to each product: one number for each row.
    pub bias: Option<&'a TensorProto>,
    /// The result is multiplied by it.
    pub gain: f32,
}

impl<'a> WeightCall<'a> {
    /// The weight of `node`, a call of a `Linear` or `Embedding` function. An error is the
    /// predicate of a sentence about the node.
    pub fn of(checked: &Checked<'a>, node: &'a NodeProto) -> NodeResult<Self> {
        let (form, has_bias) = match Function::of(node) {
            Some(Function::Linear { weight, bias }) => (weight, bias),
            Some(Function::Embedding { weight }) => (weight, false),
            Some(Function::RmsNorm) | None => return Err("computes with no weight".into()),
        };
        let mut parts = vec![];
        let mut elements = vec![];
        for (index, &part) in form.parts().iter().enumerate() {
            // Input 0 is `x` or `ids`.
            let tensor = constant(checked, node, 1 + index)?;
            parts.push((part, tensor));
            elements.push(stored_element(tensor)?);
        }
        let &[rows, columns] = shape(checked, parts[0].1) else {
            return Err("expects a matrix as its weight".into());
        };
        let encoding = read_encoding(form, &elements, node, columns)?;
        let specs = encoding
            .parts(&[rows, columns])
            .map_err(|why| format!("has a weight that does not exist: {why}"))?;
        for (index, spec) in specs.iter().enumerate() {
            let (tensor, element) = (parts[index].1, elements[index]);
            let dims = shape(checked, tensor);
            if spec.element != element || spec.shape != dims {
                return Err(format!(
                    "expects {} as {} {:?}, but `{}` is {} {dims:?}",
                    spec.part.name(),
                    spec.element.name(),
                    spec.shape,
                    tensor.name,
                    element.name()
                ));
            }
        }
        let mut bias = None;
        if has_bias {
            bias = Some(read_bias(checked, node, 1 + parts.len(), rows)?);
        }
        let Some(gain) = attribute(node, "gain").and_then(|found| found.f) else {
            return Err("lacks the number `gain`".into());
        };
        Ok(WeightCall {
            encoding,
            rows,
            columns,
            parts,
            bias,
            gain,
        })
    }

    /// The constant that holds `part`, if the encoding has it.
    pub fn part(&self, part: WeightPart) -> Option<&'a TensorProto> {
        for (found, tensor) in &self.parts {
            if *found == part {
                return Some(tensor);
            }
        }
        None
    }

    /// The constant that has one element for each value of the matrix.
    pub fn main(&self) -> &'a TensorProto {
        self.parts[0].1
    }
}

/// The distinct uses of weight matrices in the graph of `model`.
pub fn weight_uses(model: &ModelProto) -> Result<Vec<WeightUse>> {
    let checked = Checked::new(model)?;
    let encodings = Encodings::of(&checked)?;
    let mut uses = BTreeSet::new();
    for node in &checked.graph.node {
        match weight_use(&checked, &encodings, node) {
            Ok(found) => uses.extend(found),
            Err(why) => return Err(problem(node, &why)),
        }
    }
    Ok(uses.into_iter().collect())
}

/// The problem with the weight of `node` that `why`, the predicate of a sentence about it, states.
pub(super) fn problem(node: &NodeProto, why: &str) -> Problem {
    let message = format!("node `{}` ({}) {why}", node.name, node.op_type);
    Problem::new(Code::OnnxWeight, message)
}

fn weight_use(
    checked: &Checked,
    encodings: &Encodings,
    node: &NodeProto,
) -> NodeResult<Option<WeightUse>> {
    Ok(match Function::of(node) {
        Some(Function::Linear { .. }) => {
            let weight = WeightCall::of(checked, node)?.encoding;
            Some(WeightUse::Linear {
                weight,
                activations: activations(encodings, node, weight)?,
            })
        }
        Some(Function::Embedding { .. }) => {
            let weight = WeightCall::of(checked, node)?.encoding;
            Some(match encodings.lookup_grid(node) {
                Some(_) => WeightUse::LookupU16 { weight },
                None => WeightUse::Lookup { weight },
            })
        }
        Some(Function::RmsNorm) | None => None,
    })
}

/// What the linear layer `node` over `weight` reads and computes in. It multiplies codes if input
/// and output are in 16-bit codes and the weight can do so. An error is the predicate of a sentence
/// about the node.
pub fn activations(
    encodings: &Encodings,
    node: &NodeProto,
    weight: WeightEncoding,
) -> NodeResult<Activations> {
    let Some(x) = node.input.first() else {
        return Ok(Activations::F16);
    };
    match encodings.grids.get(x.as_str()) {
        None => return Ok(Activations::F16),
        Some(Grid { bits: 16, .. }) => {}
        Some(Grid { bits, .. }) => return Err(format!("reads activations in {bits} bits")),
    }
    match encodings.result_grid(node) {
        Some(Grid { bits: 16, .. }) if weight.multiplies_codes() => Ok(Activations::U16),
        _ => Ok(Activations::F16FromU16),
    }
}

/// The encoding that follows from `form` and the types of its inputs.
fn read_encoding(
    form: WeightForm,
    elements: &[Element],
    node: &NodeProto,
    columns: u64,
) -> NodeResult<WeightEncoding> {
    let (codes, scales, offsets) = match (form, elements) {
        (WeightForm::Plain, &[element]) => return Ok(WeightEncoding::Plain { element }),
        (WeightForm::Lpbq, _) => {
            let block = read_block(node)?;
            return Ok(WeightEncoding::Lpbq { block });
        }
        (WeightForm::Block, &[codes, scales]) => (codes, scales, None),
        (WeightForm::BlockOffset, &[codes, scales, offsets]) => (codes, scales, Some(offsets)),
        _ => return Err(format!("has {} inputs for its weight", elements.len())),
    };
    let block = read_block(node)?;
    Ok(WeightEncoding::blocks(
        codes, block, scales, offsets, columns,
    ))
}

/// The number of columns that share a scale.
fn read_block(node: &NodeProto) -> NodeResult<u32> {
    let Some(block) = attribute(node, "block").and_then(|found| found.i) else {
        return Err("lacks the integer `block`".into());
    };
    u32::try_from(block).map_err(|_| format!("has blocks of {block}"))
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|found| found.name == name)
}

fn read_bias<'a>(
    checked: &Checked<'a>,
    node: &NodeProto,
    index: usize,
    rows: u64,
) -> NodeResult<&'a TensorProto> {
    let bias = constant(checked, node, index)?;
    if shape(checked, bias) != [rows] || !stored_element(bias)?.is_float() {
        return Err(format!("expects {rows} numbers as its bias"));
    }
    Ok(bias)
}

/// The constant that input `index` of `node` is.
fn constant<'a>(
    checked: &Checked<'a>,
    node: &NodeProto,
    index: usize,
) -> NodeResult<&'a TensorProto> {
    let Some(name) = node.input.get(index) else {
        return Err(format!("has no input {index}"));
    };
    match checked.initializers.get(name.as_str()) {
        Some(tensor) => Ok(tensor),
        None => Err(format!("reads `{name}`, which must be a constant")),
    }
}

fn shape<'c>(checked: &'c Checked, tensor: &TensorProto) -> &'c [u64] {
    match checked.types.get(tensor.name.as_str()) {
        Some(found) => &found.dims,
        None => &[],
    }
}

fn stored_element(tensor: &TensorProto) -> NodeResult<Element> {
    match element_of(tensor.data_type) {
        Some(element) => Ok(element),
        None => Err(format!(
            "reads `{}`, whose type {} no weight has",
            tensor.name,
            element_name(tensor.data_type)
        )),
    }
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

/// The element type with this number in ONNX, if weights can have it.
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
    use std::collections::BTreeMap;

    use super::super::{Builder, External, Value, gain, int};
    use super::*;

    /// A graph of one linear layer over 64 columns. `bits`: `x` and `y` are on a grid of that many
    /// bits. Its constants are (part, type, dims).
    fn linear(
        form: WeightForm,
        block: Option<i64>,
        parts: &[(&str, Element, &[u64])],
        bits: Option<u32>,
    ) -> ModelProto {
        let mut grids = BTreeMap::new();
        if let Some(bits) = bits {
            grids.insert("x".to_string(), Grid::unit(bits));
            grids.insert("y".to_string(), Grid::unit(bits));
        }
        let mut builder = Builder::rounding(grids);
        let mut inputs: Vec<Value> = vec![builder.input("x", element::FLOAT, &[1, 1, 2, 64])];
        for (name, element, dims) in parts {
            inputs.push(builder.external(&External {
                // The encoding does not follow from names.
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
        let mut attributes = vec![gain(0)];
        if let Some(block) = block {
            attributes.insert(0, int("block", block));
        }
        let y = builder.call(function, "y", &inputs, attributes, vec![1, 1, 2, 4]);
        builder.output(&y);
        builder.finish("g")
    }

    #[track_caller]
    fn check(model: ModelProto, expected: std::result::Result<(&str, Activations), &str>) {
        match (weight_uses(&model), expected) {
            (Ok(uses), Ok((encoding, expected))) => {
                let &[
                    WeightUse::Linear {
                        weight,
                        activations,
                    },
                ] = uses.as_slice()
                else {
                    panic!("{uses:?}");
                };
                assert_eq!(
                    (weight.to_string().as_str(), activations),
                    (encoding, expected)
                );
            }
            (Err(problem), Err(message)) => assert_eq!(problem.message, message),
            (found, expected) => panic!("expected {expected:?}, found {found:?}"),
        }
    }

    #[test]
    fn the_encoding_follows_from_the_call() {
        use Activations::{F16, F16FromU16, U16};
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
            Ok(("int4 x16 f16", F16FromU16)),
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
        check(
            linear(WeightForm::Lpbq, Some(32), &lpbq, Some(16)),
            Ok(("lpbq x32", U16)),
        );
        check(
            linear(WeightForm::Block, Some(64), &of_row, Some(16)),
            Ok(("int4 by channel", U16)),
        );
    }

    #[test]
    fn constants_that_contradict_the_call_are_rejected() {
        let codes: (&str, Element, &[u64]) = ("c", Element::Int4, &[4, 64]);
        let scales: (&str, Element, &[u64]) = ("s", Element::F16, &[4, 2]);
        check(
            linear(WeightForm::Block, Some(16), &[codes, scales], None),
            Err(
                "node `y` (BlockLinear) expects scales as f16 [4, 4], but `w/anything-s` is f16 \
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
            Err("node `y.exact` (BlockLinear) reads activations in 8 bits"),
        );
    }
}
