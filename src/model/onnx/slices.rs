//! Cuts the large matrices of a graph into rows, for a runtime that holds in f32 what it multiplies
//! by.
//!
//! A call `y = Linear(x, W)` becomes calls with some rows of W each, and a `Concat` of their
//! results. The rows are the same bytes of the same files: of an external tensor a slice is another
//! offset and another length.

use std::collections::HashMap;
use std::ops::Range;

use super::functions::{Function, int};
use super::proto::{EXTERNAL, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

/// How the names of slices begin.
const SLICE: &str = "slice.";

/// Whether a node or a value of this name is a slice.
pub(super) fn is_slice(name: &str) -> bool {
    name.starts_with(SLICE)
}

/// `model` with every matrix of more than `most` elements cut into rows, where its bytes can be.
pub fn sliced(mut model: ModelProto, most: u64) -> ModelProto {
    let Some(graph) = model.graph.take() else {
        return model;
    };
    let weights: HashMap<&str, &TensorProto> = by_name(&graph.initializer, |tensor| &tensor.name);
    let infos: HashMap<&str, &ValueInfoProto> =
        by_name(graph.output.iter().chain(&graph.value_info), |value| {
            &value.name
        });
    let (mut node, mut initializer, mut value_info) = (vec![], vec![], vec![]);
    for call in &graph.node {
        let info = call
            .output
            .first()
            .and_then(|output| infos.get(output.as_str()));
        let Some(slices) = info.and_then(|info| slices(call, info, &weights, most)) else {
            node.push(call.clone());
            continue;
        };
        let names = slices.iter().map(|slice| slice.call.name.clone()).collect();
        for slice in slices {
            node.push(slice.call);
            initializer.extend(slice.weights);
            value_info.push(slice.info);
        }
        let axis = vec![int("axis", -1)];
        node.push(NodeProto {
            input: names,
            op_type: "Concat".into(),
            attribute: axis,
            domain: String::new(),
            ..call.clone()
        });
    }
    initializer.extend(graph.initializer);
    value_info.extend(graph.value_info);
    model.graph = Some(GraphProto {
        node,
        initializer,
        value_info,
        name: graph.name,
        input: graph.input,
        output: graph.output,
    });
    model
}

fn by_name<'a, T>(
    all: impl IntoIterator<Item = &'a T>,
    name: impl Fn(&'a T) -> &'a String,
) -> HashMap<&'a str, &'a T> {
    all.into_iter()
        .map(|one| (name(one).as_str(), one))
        .collect()
}

/// Some rows of a call.
struct Slice {
    call: NodeProto,
    weights: Vec<TensorProto>,
    info: ValueInfoProto,
}

/// What `call` is cut into, if it is a linear one with more than `most` elements.
fn slices(
    call: &NodeProto,
    info: &ValueInfoProto,
    weights: &HashMap<&str, &TensorProto>,
    most: u64,
) -> Option<Vec<Slice>> {
    let is_linear = matches!(Function::of(call), Some(Function::Linear { .. }));
    let (x, held) = call.input.split_first().filter(|_| is_linear)?;
    let held: Vec<&TensorProto> = held
        .iter()
        .map(|name| weights.get(name.as_str()).copied())
        .collect::<Option<_>>()?;
    let [rows, columns] = *held.first()?.dims.as_slice() else {
        return None;
    };
    let [rows, columns] = [u64::try_from(rows).ok()?, u64::try_from(columns).ok()?];
    if rows.checked_mul(columns)? <= most {
        return None;
    }
    let step = (most / columns.max(1)).max(1);
    let starts = (0..rows).step_by(usize::try_from(step).ok()?);
    let slice = |(at, start): (usize, u64)| {
        let (rows, name) = (
            start..rows.min(start + step),
            format!("{SLICE}{at}.{}", call.name),
        );
        let weights: Vec<TensorProto> = held
            .iter()
            .map(|tensor| some_rows(tensor, &rows, &name))
            .collect::<Option<_>>()?;
        let input = [x.clone()]
            .into_iter()
            .chain(weights.iter().map(|tensor| tensor.name.clone()))
            .collect();
        let mut info = ValueInfoProto {
            name: name.clone(),
            ..info.clone()
        };
        let shape = info.r#type.as_mut()?.tensor_type.as_mut()?.shape.as_mut()?;
        shape.dim.last_mut()?.dim_value = i64::try_from(rows.end - rows.start).ok();
        let call = NodeProto {
            input,
            output: vec![name.clone()],
            name,
            ..call.clone()
        };
        Some(Slice {
            call,
            weights,
            info,
        })
    };
    starts.enumerate().map(slice).collect()
}

/// The rows of a tensor whose bytes are a file's: of one index of its first dimension each, one
/// after the other.
pub struct ExternalRows<'a> {
    /// The file, relative to that of the model.
    pub location: &'a str,
    /// Where the first begins.
    pub offset: u64,
    /// How many there are; one at least.
    pub rows: u64,
    /// Length of each.
    pub row_bytes: u64,
}

impl<'a> ExternalRows<'a> {
    /// Those of `tensor`; `None` if they are no whole bytes of a file.
    pub fn of(tensor: &'a TensorProto) -> Option<Self> {
        let number = |key: &str| tensor.external(key)?.parse::<u64>().ok();
        let rows = u64::try_from(*tensor.dims.first()?)
            .ok()
            .filter(|rows| *rows > 0)?;
        let length = number("length")
            .filter(|length| tensor.data_location == EXTERNAL && length.is_multiple_of(rows))?;
        let (location, offset) = (tensor.external("location")?, number("offset")?);
        Some(ExternalRows {
            location,
            offset,
            rows,
            row_bytes: length / rows,
        })
    }
}

/// `rows` of a tensor whose first dimension is that of the matrix, for the call `of`.
fn some_rows(tensor: &TensorProto, rows: &Range<u64>, of: &str) -> Option<TensorProto> {
    let all = ExternalRows::of(tensor)?;
    let offset = rows
        .start
        .checked_mul(all.row_bytes)?
        .checked_add(all.offset)?;
    let length = (rows.end - rows.start).checked_mul(all.row_bytes)?;
    let mut slice = TensorProto {
        name: format!("{of}/{}", tensor.name),
        ..tensor.clone()
    };
    *slice.dims.first_mut()? = i64::try_from(rows.end - rows.start).ok()?;
    for entry in &mut slice.external_data {
        match entry.key.as_str() {
            "offset" => entry.value = offset.to_string(),
            "length" => entry.value = length.to_string(),
            _ => {}
        }
    }
    Some(slice)
}

#[cfg(test)]
mod tests {
    use super::super::proto::element;
    use super::super::{Builder, External, Value, gain};
    use super::*;
    use crate::model::weight::WeightForm;

    /// A linear call of five rows of four columns in 4 bits, and its bias.
    fn model() -> ModelProto {
        let mut builder = Builder::default();
        let x = builder.input("x", element::FLOAT, &[1, 4]);
        let mut tensor = |name: &str, element, dims: &[u64], size_bytes| {
            builder.external(&External {
                name,
                location: format!("weights/{name}"),
                element,
                dims,
                size_bytes,
            })
        };
        let codes = tensor("w/codes", element::INT4, &[5, 4], 10);
        let scales = tensor("w/scales", element::FLOAT16, &[5, 1], 10);
        let bias = tensor("b/values", element::FLOAT, &[5], 20);
        let function = Function::Linear {
            weight: WeightForm::Block,
            bias: true,
        };
        let attributes = vec![int("block", 4), gain(0)];
        let y = builder.call(
            function,
            "blk.0.y",
            &[&x, &codes, &scales, &bias],
            attributes,
            vec![1, 5],
        );
        let z = builder.elementwise(
            "Add",
            "z",
            &y,
            &Value {
                name: "blk.0.y".into(),
                dims: vec![1, 5],
            },
        );
        builder.output(&z);
        builder.finish("g")
    }

    fn lines(model: &ModelProto) -> Vec<String> {
        let graph = model.graph.as_ref().unwrap();
        let tensor = |name: &String| {
            let of = graph
                .initializer
                .iter()
                .find(|tensor| &tensor.name == name)?;
            let entries = of
                .external_data
                .iter()
                .map(|entry| entry.value.as_str())
                .collect::<Vec<_>>()
                .join(" ");
            Some(format!("{:?} {entries}", of.dims))
        };
        let line = |node: &NodeProto| {
            let inputs: Vec<String> = node
                .input
                .iter()
                .map(|name| tensor(name).unwrap_or(name.clone()))
                .collect();
            format!(
                "{} = {}({})",
                node.output[0],
                node.op_type,
                inputs.join(", ")
            )
        };
        graph.node.iter().map(line).collect()
    }

    #[test]
    fn rows_are_other_offsets_of_the_same_files() {
        let cut = sliced(model(), 8);
        assert_eq!(
            lines(&cut),
            [
                "slice.0.blk.0.y = BlockLinearBias(x, [2, 4] weights/w/codes 0 4, [2, 1] \
                 weights/w/scales 0 4, [2] weights/b/values 0 8)",
                "slice.1.blk.0.y = BlockLinearBias(x, [2, 4] weights/w/codes 4 4, [2, 1] \
                 weights/w/scales 4 4, [2] weights/b/values 8 8)",
                "slice.2.blk.0.y = BlockLinearBias(x, [1, 4] weights/w/codes 8 2, [1, 1] \
                 weights/w/scales 8 2, [1] weights/b/values 16 4)",
                "blk.0.y = Concat(slice.0.blk.0.y, slice.1.blk.0.y, slice.2.blk.0.y)",
                "z = Add(blk.0.y, blk.0.y)",
            ]
        );
        assert!(super::super::Checked::new(&cut).is_ok());
    }

    #[test]
    fn what_fits_stays_whole() {
        assert_eq!(sliced(model(), 20), model());
    }

    #[test]
    fn rows_that_are_no_whole_bytes_stay_whole() {
        let mut model = model();
        for tensor in model
            .graph
            .iter_mut()
            .flat_map(|graph| &mut graph.initializer)
        {
            tensor.external_data[2].value = "9".into();
        }
        assert_eq!(sliced(model.clone(), 8), model);
    }
}
