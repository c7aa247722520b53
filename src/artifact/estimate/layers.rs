//! The table of the linear layers of a model: one row for each shape and encoding.

use std::collections::BTreeMap;
use std::fmt;

use super::LayerEstimate;
use crate::model::onnx::LinearShape;

/// The layers of one shape.
struct Row {
    sum_us: f64,
    count: usize,
    /// The first of their tensors.
    tensor: String,
}

/// Writes a row for each shape among `layers`, the one with the longest sum first, and the sum of
/// all; nothing if there are no layers.
pub(super) fn write_table(
    f: &mut fmt::Formatter,
    layers: &BTreeMap<&str, &LayerEstimate>,
) -> fmt::Result {
    if layers.is_empty() {
        return Ok(());
    }
    let mut by_shape: BTreeMap<LinearShape, Row> = BTreeMap::new();
    let mut total_us = 0.0;
    for (tensor, layer) in layers {
        total_us += layer.time_us;
        let row = by_shape.entry(layer.shape).or_insert(Row {
            sum_us: 0.0,
            count: 0,
            tensor: tensor.to_string(),
        });
        row.sum_us += layer.time_us;
        row.count += 1;
    }
    let mut rows: Vec<(LinearShape, Row)> = by_shape.into_iter().collect();
    rows.sort_by(|(_, a), (_, b)| b.sum_us.total_cmp(&a.sum_us));

    writeln!(
        f,
        "\nlinear layers of decode: estimates of each layer alone, not of how they run together\n\
         {:14} {:22} {:11} {:4} {:>6} {:>10} {:>10}  first",
        "rows x columns", "weight", "activations", "bias", "layers", "us of one", "us of all"
    )?;
    for (shape, row) in &rows {
        let (weight, bias) = (
            shape.weight.to_string(),
            if shape.bias { "yes" } else { "" },
        );
        writeln!(
            f,
            "{:14} {weight:22} {:11} {bias:4} {:>6} {:>10.2} {:>10.1}  {}",
            format!("{} x {}", shape.rows, shape.columns),
            activations(shape),
            row.count,
            row.sum_us / row.count as f64,
            row.sum_us,
            row.tensor
        )?;
    }
    let count = layers.len();
    writeln!(f, "{:54} {count:>6} {:>10} {total_us:>10.1}", "sum", "")
}

/// The types of input and output: `u16`, `u16 to f16`.
fn activations(shape: &LinearShape) -> String {
    let name = |bits: Option<u32>| match bits {
        Some(bits) => format!("u{bits}"),
        None => "f16".into(),
    };
    let (input, output) = (name(shape.input_bits), name(shape.output_bits));
    if input == output {
        input
    } else {
        format!("{input} to {output}")
    }
}
