//! The linear layers of a graph, each as a graph of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::proto::{EXTERNAL, ModelProto, element};
use super::weights::problem;
use super::{Builder, Checked, Encodings, Function, Value, WeightCall};
use crate::base::Result;
use crate::model::weight::{WeightEncoding, blob_owner};

/// A linear layer over a weight in external files.
pub struct LinearLayer {
    /// The name of its weight: `blk.0.attn_q.weight`.
    pub tensor: String,
    /// Everything that its speed depends on.
    pub shape: LinearShape,
    /// A graph with just this layer, from `x` to `y`. Both are rounded as in the graph that the
    /// layer is from.
    pub model: ModelProto,
}

/// Two linear layers of the same shape take the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinearShape {
    /// Tokens per call.
    pub tokens: u64,
    /// Rows of the weight: the width of the output.
    pub rows: u64,
    /// Columns of the weight: the width of the input.
    pub columns: u64,
    /// How the weight is stored.
    pub weight: WeightEncoding,
    /// Bits of the codes of the input; `None` if it is in fp16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_bits: Option<u32>,
    /// Bits of the codes of the output; `None` if it is in fp16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bits: Option<u32>,
    /// Whether it has a bias.
    pub bias: bool,
}

/// The linear layers of `model` in the order of its nodes. Not among them: matrices that are
/// constants of the graph itself and thus no tensors of a model.
pub fn linear_layers(model: &ModelProto) -> Result<Vec<LinearLayer>> {
    let checked = Checked::new(model)?;
    let encodings = Encodings::of(&checked)?;
    let mut layers = vec![];
    for node in &checked.graph.node {
        let Some(function @ Function::Linear { .. }) = Function::of(node) else {
            continue;
        };
        let call = WeightCall::of(&checked, node).map_err(|why| problem(node, &why))?;
        if call.main().data_location != EXTERNAL {
            continue;
        }
        let Some((x_name, constants)) = node.input.split_first() else {
            return Err(problem(node, "has no input"));
        };
        let Some(x) = checked.types.get(x_name.as_str()) else {
            return Err(problem(node, "has no input"));
        };
        let input_grid = encodings.grids.get(x_name.as_str());
        let output_grid = encodings.result_grid(node);
        let mut grids = BTreeMap::new();
        for (name, grid) in [("x", input_grid), ("y", output_grid.as_ref())] {
            if let Some(&grid) = grid {
                grids.insert(name.to_string(), grid);
            }
        }
        let mut builder = Builder::rounding(grids);
        let mut inputs: Vec<Value> = vec![builder.input("x", element::FLOAT, &x.dims)];
        for name in constants {
            let Some(&constant) = checked.initializers.get(name.as_str()) else {
                return Err(problem(
                    node,
                    &format!("reads `{name}`, which is no constant"),
                ));
            };
            inputs.push(builder.existing(constant));
        }
        let inputs: Vec<&Value> = inputs.iter().collect();
        let mut dims = x.dims.clone();
        dims.pop();
        let tokens = dims.iter().product();
        dims.push(call.rows);
        let y = builder.call(function, "y", &inputs, node.attribute.clone(), dims);
        builder.output(&y);
        layers.push(LinearLayer {
            tensor: blob_owner(&call.main().name).into(),
            shape: LinearShape {
                tokens,
                rows: call.rows,
                columns: call.columns,
                weight: call.encoding,
                input_bits: input_grid.map(|grid| grid.bits),
                output_bits: output_grid.map(|grid| grid.bits),
                bias: call.bias.is_some(),
            },
            model: builder.finish(&format!("layer.{}", layers.len())),
        });
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::super::{External, Grid, gain, int, lint, weight_uses};
    use super::*;
    use crate::model::weight::WeightForm;

    /// A graph of `a = Linear(x, A)`, `b = Linear(a, B) + bias`, and `c = Linear(b, C)` with a
    /// constant C. Values in `grids` are rounded.
    fn three(grids: &[&str]) -> ModelProto {
        let unit = |name: &&str| (name.to_string(), Grid::unit(16));
        let mut builder = Builder::rounding(grids.iter().map(unit).collect());
        let mut value = builder.input("x", element::FLOAT, &[1, 1, 2, 64]);
        for (name, bias) in [("a", false), ("b", true)] {
            let mut inputs = vec![value.clone()];
            let (codes, scales) = (format!("{name}.w/codes"), format!("{name}.w/scales"));
            for (name, element, dims) in [
                (&codes, element::INT4, [64, 64]),
                (&scales, element::FLOAT, [64, 1]),
            ] {
                inputs.push(builder.external(&External {
                    name,
                    location: format!("weights/{name}"),
                    element,
                    dims: &dims,
                    size_bytes: 1,
                }));
            }
            if bias {
                inputs.push(builder.constant("b.bias", &[64], &[0.5; 64]));
            }
            let function = Function::Linear {
                weight: WeightForm::Block,
                bias,
            };
            let inputs: Vec<&Value> = inputs.iter().collect();
            let attributes = vec![int("block", 64), gain(0)];
            value = builder.call(function, name, &inputs, attributes, vec![1, 1, 2, 64]);
        }
        let c = builder.constant("c.w", &[4, 64], &[1.0; 256]);
        let function = Function::Linear {
            weight: WeightForm::Plain,
            bias: false,
        };
        let dims = vec![1, 1, 2, 4];
        let c = builder.call(function, "c", &[&value, &c], vec![gain(0)], dims);
        builder.output(&c);
        builder.finish("three")
    }

    #[track_caller]
    fn check(grids: &[&str], expected: [(Option<u32>, Option<u32>); 2]) {
        let model = three(grids);
        let layers = linear_layers(&model).unwrap();
        let names: Vec<&str> = layers.iter().map(|layer| layer.tensor.as_str()).collect();
        assert_eq!(names, ["a.w", "b.w"]);
        for (index, layer) in layers.iter().enumerate() {
            let shape = layer.shape;
            assert_eq!((shape.tokens, shape.rows, shape.columns), (2, 64, 64));
            assert_eq!(shape.weight.to_string(), "int4 by channel");
            assert_eq!(shape.bias, index == 1);
            assert_eq!((shape.input_bits, shape.output_bits), expected[index]);
            lint(&[&layer.model]).unwrap();
            // The layer by itself computes as it does in its graph.
            for found in weight_uses(&layer.model).unwrap() {
                assert!(weight_uses(&model).unwrap().contains(&found), "{found:?}");
            }
        }
    }

    #[test]
    fn a_layer_is_rounded_as_in_its_graph() {
        check(&[], [(None, None), (None, None)]);
        check(&["x", "a"], [(Some(16), Some(16)), (Some(16), None)]);
        check(&["a", "b"], [(None, Some(16)), (Some(16), Some(16))]);
    }
}
