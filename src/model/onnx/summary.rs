//! The summary of an ONNX file: as text for people, as JSON for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::proto::{DimensionProto, EXTERNAL, ModelProto, ValueInfoProto, element};
use crate::base::bytes;

/// Inputs, outputs, functions and weights of a model, and how many nodes each operator has.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Name of the graph.
    pub graph: String,
    /// IR version.
    pub ir_version: i64,
    /// Domain -> version of its operators.
    pub opsets: BTreeMap<String, i64>,
    /// Name and type, `f32 [1, 1, 8, 64]`, without constants.
    pub inputs: Vec<(String, String)>,
    /// Name and type.
    pub outputs: Vec<(String, String)>,
    /// Operator -> nodes.
    pub operators: BTreeMap<String, usize>,
    /// Function -> nodes of its body.
    pub functions: BTreeMap<String, usize>,
    /// Constants in the ONNX file itself.
    pub constants: usize,
    /// Element type -> constants in external files.
    pub external: BTreeMap<String, usize>,
    /// Bytes of those; a range that several share counts once.
    pub external_bytes: u64,
}

impl Summary {
    /// The summary of `model`.
    pub fn of(model: &ModelProto) -> Self {
        let mut summary = Summary {
            ir_version: model.ir_version,
            ..Summary::default()
        };
        for set in &model.opset_import {
            let domain = match set.domain.as_str() {
                "" => "ai.onnx",
                domain => domain,
            };
            summary.opsets.insert(domain.into(), set.version);
        }
        for function in &model.functions {
            let name = full_name(&function.domain, &function.name);
            summary.functions.insert(name, function.node.len());
        }
        let Some(graph) = &model.graph else {
            return summary;
        };
        summary.graph = graph.name.clone();
        let mut constants: BTreeSet<&str> = BTreeSet::new();
        let mut ranges: BTreeSet<[&str; 3]> = BTreeSet::new();
        for tensor in &graph.initializer {
            constants.insert(&tensor.name);
            if tensor.data_location == EXTERNAL {
                ranges.insert(
                    ["location", "offset", "length"]
                        .map(|key| tensor.external(key).unwrap_or_default()),
                );
                let element = element_name(tensor.data_type);
                *summary.external.entry(element).or_default() += 1;
            } else {
                summary.constants += 1;
            }
        }
        for [_, _, length] in ranges {
            let length: u64 = length.parse().unwrap_or(0);
            summary.external_bytes = summary.external_bytes.saturating_add(length);
        }
        for input in &graph.input {
            if !constants.contains(input.name.as_str()) {
                summary.inputs.push((input.name.clone(), type_of(input)));
            }
        }
        for output in &graph.output {
            summary.outputs.push((output.name.clone(), type_of(output)));
        }
        for node in &graph.node {
            let operator = full_name(&node.domain, &node.op_type);
            *summary.operators.entry(operator).or_default() += 1;
        }
        summary
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut opsets = vec![];
        for (domain, version) in &self.opsets {
            opsets.push(format!("{domain} {version}"));
        }
        writeln!(
            f,
            "ONNX graph `{}`: IR version {}, opset {}",
            self.graph,
            self.ir_version,
            opsets.join(", ")
        )?;
        for (title, values) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            writeln!(f, "\n{} {title}", values.len())?;
            for (name, value_type) in values {
                writeln!(f, "  {name:<24} {value_type}")?;
            }
        }
        writeln!(f, "\n{} nodes", self.operators.values().sum::<usize>())?;
        write_counts(f, &self.operators)?;
        writeln!(
            f,
            "\n{} functions, by nodes of their bodies",
            self.functions.len()
        )?;
        write_counts(f, &self.functions)?;
        writeln!(
            f,
            "\n{} constants inside, others outside: {}",
            self.constants,
            bytes(self.external_bytes)
        )?;
        write_counts(f, &self.external)
    }
}

fn write_counts(f: &mut Formatter<'_>, counts: &BTreeMap<String, usize>) -> fmt::Result {
    for (name, count) in counts {
        writeln!(f, "  {count:>6}  {name}")?;
    }
    Ok(())
}

fn full_name(domain: &str, name: &str) -> String {
    if domain.is_empty() {
        name.into()
    } else {
        format!("{domain}.{name}")
    }
}

fn type_of(value: &ValueInfoProto) -> String {
    let Some(kind) = &value.r#type else {
        return "no tensor".into();
    };
    let Some(tensor) = &kind.tensor_type else {
        return "no tensor".into();
    };
    let mut dims = vec![];
    if let Some(shape) = &tensor.shape {
        for dim in &shape.dim {
            dims.push(dimension(dim));
        }
    }
    format!("{} [{}]", element_name(tensor.elem_type), dims.join(", "))
}

fn dimension(dim: &DimensionProto) -> String {
    match (&dim.dim_value, &dim.dim_param) {
        (Some(n), _) => n.to_string(),
        (None, Some(name)) if !name.is_empty() => name.clone(),
        _ => "?".into(),
    }
}

/// `f16`; an unknown type by its number.
pub fn element_name(element: i32) -> String {
    let name = match element {
        element::FLOAT => "f32",
        element::UINT8 => "u8",
        element::INT8 => "i8",
        element::UINT16 => "u16",
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
