//! Splits the large matrices of a graph into rows, for a runtime that expands its weights to f32.
//!
//! A call `y = Linear(x, W)` becomes one call for each range of rows of W, and a `Concat` of the
//! results. No bytes are copied: a slice of an external tensor is another offset and length in the
//! same file.

use std::collections::HashMap;
use std::ops::Range;

use super::functions::{Function, int};
use super::proto::{EXTERNAL, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

/// The prefix of the names of slices.
const SLICE: &str = "slice.";

/// Whether a node or a value of this name is a slice.
pub(super) fn is_slice(name: &str) -> bool {
    name.starts_with(SLICE)
}

/// `model` with every matrix of more than `max_elements` elements split into rows, where rows are
/// whole bytes.
pub fn sliced(mut model: ModelProto, max_elements: u64) -> ModelProto {
    let Some(graph) = model.graph.take() else {
        return model;
    };
    let mut constants: HashMap<&str, &TensorProto> = HashMap::new();
    for tensor in &graph.initializer {
        constants.insert(&tensor.name, tensor);
    }
    let mut infos: HashMap<&str, &ValueInfoProto> = HashMap::new();
    for values in [&graph.output, &graph.value_info] {
        for value in values {
            infos.insert(&value.name, value);
        }
    }
    let (mut node, mut initializer, mut value_info) = (vec![], vec![], vec![]);
    for call in &graph.node {
        let Some(slices) = split_rows(call, &infos, &constants, max_elements) else {
            node.push(call.clone());
            continue;
        };
        let mut names = vec![];
        for slice in slices {
            names.push(slice.call.name.clone());
            node.push(slice.call);
            initializer.extend(slice.weights);
            value_info.push(slice.info);
        }
        node.push(NodeProto {
            input: names,
            op_type: "Concat".into(),
            attribute: vec![int("axis", -1)],
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

/// Some rows of a call.
struct Slice {
    call: NodeProto,
    weights: Vec<TensorProto>,
    info: ValueInfoProto,
}

/// The slices of `call`; `None` unless it is a linear layer with more than `max_elements` elements
/// whose rows are whole bytes.
fn split_rows(
    call: &NodeProto,
    infos: &HashMap<&str, &ValueInfoProto>,
    constants: &HashMap<&str, &TensorProto>,
    max_elements: u64,
) -> Option<Vec<Slice>> {
    let Some(Function::Linear { .. }) = Function::of(call) else {
        return None;
    };
    let info = infos.get(call.output.first()?.as_str())?;
    let mut weights = vec![];
    for name in call.input.get(1..)? {
        weights.push(*constants.get(name.as_str())?);
    }
    let &[rows, columns] = weights.first()?.dims.as_slice() else {
        return None;
    };
    let [rows, columns] = [u64::try_from(rows).ok()?, u64::try_from(columns).ok()?];
    if rows.checked_mul(columns)? <= max_elements {
        return None;
    }
    let step = (max_elements / columns.max(1)).max(1);
    let mut slices = vec![];
    let mut start = 0;
    while start < rows {
        let range = start..rows.min(start + step);
        start = range.end;
        slices.push(slice_call(call, info, &weights, slices.len(), range)?);
    }
    Some(slices)
}

/// Slice `index` of `call`, with `rows` of its `weights`.
fn slice_call(
    call: &NodeProto,
    info: &ValueInfoProto,
    weights: &[&TensorProto],
    index: usize,
    rows: Range<u64>,
) -> Option<Slice> {
    let name = format!("{SLICE}{index}.{}", call.name);
    let mut input = vec![call.input.first()?.clone()];
    let mut sliced_weights = vec![];
    for tensor in weights {
        let tensor = slice_tensor(tensor, &rows, &name)?;
        input.push(tensor.name.clone());
        sliced_weights.push(tensor);
    }
    let mut info = ValueInfoProto {
        name: name.clone(),
        ..info.clone()
    };
    let shape = info.r#type.as_mut()?.tensor_type.as_mut()?.shape.as_mut()?;
    shape.dim.last_mut()?.dim_value = i64::try_from(rows.end - rows.start).ok();
    Some(Slice {
        call: NodeProto {
            input,
            output: vec![name.clone()],
            name,
            ..call.clone()
        },
        weights: sliced_weights,
        info,
    })
}

/// The rows of an external tensor. A row is one index of the first dimension; rows are contiguous.
pub struct ExternalRows<'a> {
    /// The file, relative to that of the model.
    pub location: &'a str,
    /// Offset of the first row in the file.
    pub offset: u64,
    /// Number of rows, at least 1.
    pub rows: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
}

impl<'a> ExternalRows<'a> {
    /// The rows of `tensor`; `None` if it is not external or its rows are not whole bytes.
    pub fn of(tensor: &'a TensorProto) -> Option<Self> {
        if tensor.data_location != EXTERNAL {
            return None;
        }
        let rows = u64::try_from(*tensor.dims.first()?).ok()?;
        let length: u64 = tensor.external("length")?.parse().ok()?;
        if rows == 0 || !length.is_multiple_of(rows) {
            return None;
        }
        Some(ExternalRows {
            location: tensor.external("location")?,
            offset: tensor.external("offset")?.parse().ok()?,
            rows,
            row_bytes: length / rows,
        })
    }
}

/// `rows` of a tensor, for the call `call_name`.
fn slice_tensor(tensor: &TensorProto, rows: &Range<u64>, call_name: &str) -> Option<TensorProto> {
    let all = ExternalRows::of(tensor)?;
    let start_bytes = rows.start.checked_mul(all.row_bytes)?;
    let offset = start_bytes.checked_add(all.offset)?;
    let length = (rows.end - rows.start).checked_mul(all.row_bytes)?;
    let mut slice = TensorProto {
        name: format!("{call_name}/{}", tensor.name),
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

    /// A linear layer with a 4-bit weight of 5 rows and 4 columns, and a bias.
    fn example() -> ModelProto {
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
        let mut lines = vec![];
        for node in &graph.node {
            let mut inputs = vec![];
            for name in &node.input {
                match graph.initializer.iter().find(|found| found.name == *name) {
                    Some(tensor) => inputs.push(external_text(tensor)),
                    None => inputs.push(name.clone()),
                }
            }
            let (output, op) = (&node.output[0], &node.op_type);
            lines.push(format!("{output} = {op}({})", inputs.join(", ")));
        }
        lines
    }

    /// Shape, location, offset and length.
    fn external_text(tensor: &TensorProto) -> String {
        let mut text = format!("{:?}", tensor.dims);
        for entry in &tensor.external_data {
            text.push(' ');
            text.push_str(&entry.value);
        }
        text
    }

    #[test]
    fn slices_are_offsets_into_the_same_files() {
        let split = sliced(example(), 8);
        assert_eq!(
            lines(&split),
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
        assert!(super::super::Checked::new(&split).is_ok());
    }

    #[test]
    fn small_matrices_are_not_split() {
        assert_eq!(sliced(example(), 20), example());
    }

    #[test]
    fn rows_that_are_not_whole_bytes_are_not_split() {
        let mut model = example();
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            tensor.external_data[2].value = "9".into();
        }
        assert_eq!(sliced(model.clone(), 8), model);
    }
}
