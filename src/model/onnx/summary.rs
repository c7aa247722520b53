//! What an ONNX file is, for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use super::proto::{DimensionProto, EXTERNAL, ModelProto, TensorProto, ValueInfoProto, element};
use crate::base::bytes;

/// A page about `model`: inputs, outputs, how many nodes of which operator, functions, weights.
pub fn summary(model: &ModelProto) -> String {
    let mut page = String::new();
    // Invariant: writing to a String cannot fail.
    let _ = write(&mut page, model);
    page
}

fn write(page: &mut String, model: &ModelProto) -> fmt::Result {
    let graph = model.graph.clone().unwrap_or_default();
    let opsets: Vec<String> =
        model.opset_import.iter().map(|set| format!("{} {}", domain(&set.domain), set.version)).collect();
    writeln!(page, "ONNX graph `{}`: IR version {}, opset {}", graph.name, model.ir_version, opsets.join(", "))?;

    let constants: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let inputs = graph.input.iter().filter(|input| !constants.contains(input.name.as_str()));
    values(page, "inputs", inputs)?;
    values(page, "outputs", graph.output.iter())?;

    let mut operators: BTreeMap<String, usize> = BTreeMap::new();
    for node in &graph.node {
        let name =
            if node.domain.is_empty() { node.op_type.clone() } else { format!("{}.{}", node.domain, node.op_type) };
        *operators.entry(name).or_default() += 1;
    }
    writeln!(page, "\n{} nodes", graph.node.len())?;
    for (operator, count) in operators {
        writeln!(page, "  {count:>6}  {operator}")?;
    }

    if !model.functions.is_empty() {
        writeln!(page, "\n{} functions", model.functions.len())?;
        for function in &model.functions {
            writeln!(
                page,
                "  {}.{}({}): {} nodes",
                function.domain,
                function.name,
                function.input.join(", "),
                function.node.len()
            )?;
        }
    }

    let (external, inside): (Vec<_>, Vec<_>) =
        graph.initializer.iter().partition(|tensor| tensor.data_location == EXTERNAL);
    writeln!(page, "\n{} constants inside", inside.len())?;
    // Tensors may share a file, so that lengths are summed by file and range.
    let ranges: BTreeSet<[&str; 3]> =
        external.iter().map(|tensor| ["location", "offset", "length"].map(|key| entry(tensor, key))).collect();
    let total: u64 = ranges.iter().filter_map(|[_, _, length]| length.parse::<u64>().ok()).fold(0, u64::saturating_add);
    writeln!(page, "{} constants in {} files, {}", external.len(), ranges.len(), bytes(total))?;
    let mut by_element: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in &external {
        *by_element.entry(element_name(tensor.data_type)).or_default() += 1;
    }
    for (element, count) in by_element {
        writeln!(page, "  {count:>6}  {element}")?;
    }
    Ok(())
}

fn values<'a>(page: &mut String, title: &str, values: impl Iterator<Item = &'a ValueInfoProto>) -> fmt::Result {
    let lines: Vec<String> = values.map(|value| format!("  {:<24} {}", value.name, type_of(value))).collect();
    writeln!(page, "\n{} {title}\n{}", lines.len(), lines.join("\n"))
}

fn type_of(value: &ValueInfoProto) -> String {
    let Some(tensor) = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref()) else {
        return "no tensor".into();
    };
    let dim = |dim: &DimensionProto| match (&dim.dim_value, &dim.dim_param) {
        (Some(n), _) => n.to_string(),
        (None, Some(name)) if !name.is_empty() => name.clone(),
        _ => "?".into(),
    };
    let dims: Vec<String> = tensor.shape.iter().flat_map(|shape| shape.dim.iter().map(dim)).collect();
    format!("{} [{}]", element_name(tensor.elem_type), dims.join(", "))
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> &'a str {
    tensor.external_data.iter().find(|entry| entry.key == key).map_or("", |entry| &entry.value)
}

fn domain(name: &str) -> &str {
    if name.is_empty() { "ai.onnx" } else { name }
}

/// `f16`; an unknown type by its number.
pub fn element_name(element: i32) -> String {
    let name = match element {
        element::FLOAT => "f32",
        element::UINT8 => "u8",
        element::INT8 => "i8",
        element::INT32 => "i32",
        element::INT64 => "i64",
        element::BOOL => "bool",
        element::FLOAT16 => "f16",
        element::DOUBLE => "f64",
        element::BFLOAT16 => "bf16",
        element::UINT4 => "u4",
        element::INT4 => "i4",
        other => return format!("type {other}"),
    };
    name.into()
}
