//! What an ONNX file is, for people and, in JSON, for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::proto::{DimensionProto, EXTERNAL, ModelProto, ValueInfoProto, element};
use crate::base::bytes;

/// Inputs, outputs, how many nodes of which operator, functions, weights.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Name of the graph.
    pub graph: String,
    /// IR version.
    pub ir_version: i64,
    /// Domain -> version of its operators.
    pub opsets: BTreeMap<String, i64>,
    /// Name and type, `f32 [1, 1, 8, 64]`, without constants.
    pub inputs: Vec<(String, String)>,
    /// Likewise.
    pub outputs: Vec<(String, String)>,
    /// Operator -> nodes.
    pub operators: BTreeMap<String, usize>,
    /// Function -> nodes of its body.
    pub functions: BTreeMap<String, usize>,
    /// Constants written into the file.
    pub constants: usize,
    /// Element type -> constants in files of their own.
    pub external: BTreeMap<String, usize>,
    /// Bytes of those; a range that several share counts once.
    pub external_bytes: u64,
}

impl Summary {
    /// The summary of `model`.
    pub fn of(model: &ModelProto) -> Self {
        let graph = model.graph.clone().unwrap_or_default();
        let (external, inside): (Vec<_>, Vec<_>) = graph
            .initializer
            .iter()
            .partition(|tensor| tensor.data_location == EXTERNAL);
        let ranges: BTreeSet<[&str; 3]> = external
            .iter()
            .map(|tensor| {
                ["location", "offset", "length"].map(|key| tensor.external(key).unwrap_or_default())
            })
            .collect();
        let lengths = ranges
            .iter()
            .filter_map(|[_, _, length]| length.parse::<u64>().ok());
        let constants: BTreeSet<&str> = graph
            .initializer
            .iter()
            .map(|tensor| tensor.name.as_str())
            .collect();
        let typed = |value: &ValueInfoProto| (value.name.clone(), type_of(value));
        let functions = model.functions.iter();
        Summary {
            ir_version: model.ir_version,
            opsets: model
                .opset_import
                .iter()
                .map(|set| (domain(&set.domain).to_string(), set.version))
                .collect(),
            inputs: graph
                .input
                .iter()
                .filter(|input| !constants.contains(input.name.as_str()))
                .map(typed)
                .collect(),
            outputs: graph.output.iter().map(typed).collect(),
            operators: counted(
                graph
                    .node
                    .iter()
                    .map(|node| full_name(&node.domain, &node.op_type)),
            ),
            functions: functions
                .map(|f| (full_name(&f.domain, &f.name), f.node.len()))
                .collect(),
            constants: inside.len(),
            external_bytes: lengths.fold(0, u64::saturating_add),
            external: counted(external.iter().map(|tensor| element_name(tensor.data_type))),
            graph: graph.name,
        }
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let opsets: Vec<String> = self
            .opsets
            .iter()
            .map(|(domain, version)| format!("{domain} {version}"))
            .collect();
        writeln!(
            f,
            "ONNX graph `{}`: IR version {}, opset {}",
            self.graph,
            self.ir_version,
            opsets.join(", ")
        )?;
        for (title, values) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            writeln!(f, "\n{} {title}", values.len())?;
            values
                .iter()
                .try_for_each(|(name, kind)| writeln!(f, "  {name:<24} {kind}"))?;
        }
        let counts = |f: &mut Formatter<'_>, counts: &BTreeMap<String, usize>| {
            counts
                .iter()
                .try_for_each(|(name, count)| writeln!(f, "  {count:>6}  {name}"))
        };
        writeln!(f, "\n{} nodes", self.operators.values().sum::<usize>())?;
        counts(f, &self.operators)?;
        writeln!(
            f,
            "\n{} functions, by nodes of their bodies",
            self.functions.len()
        )?;
        counts(f, &self.functions)?;
        writeln!(
            f,
            "\n{} constants inside, others outside: {}",
            self.constants,
            bytes(self.external_bytes)
        )?;
        counts(f, &self.external)
    }
}

fn counted(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    names.fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name).or_default() += 1;
        counts
    })
}

fn full_name(domain: &str, name: &str) -> String {
    if domain.is_empty() {
        name.into()
    } else {
        format!("{domain}.{name}")
    }
}

fn domain(name: &str) -> &str {
    if name.is_empty() { "ai.onnx" } else { name }
}

fn type_of(value: &ValueInfoProto) -> String {
    let Some(tensor) = value
        .r#type
        .as_ref()
        .and_then(|kind| kind.tensor_type.as_ref())
    else {
        return "no tensor".into();
    };
    let dim = |dim: &DimensionProto| match (&dim.dim_value, &dim.dim_param) {
        (Some(n), _) => n.to_string(),
        (None, Some(name)) if !name.is_empty() => name.clone(),
        _ => "?".into(),
    };
    let dims: Vec<String> = tensor
        .shape
        .iter()
        .flat_map(|shape| shape.dim.iter().map(dim))
        .collect();
    format!("{} [{}]", element_name(tensor.elem_type), dims.join(", "))
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
