//! The inputs of linear layers over weights with shifted blocks (`model/weight/shifted.rs`): the
//! values, and the sums of their blocks.

use super::decoder::Decoder;
use crate::model::calibration::{sums_name, wide_name};
use crate::model::onnx::{Function, Value, gain, int};
use crate::model::weight::{SumColumns, WeightForm};

/// The scale and the code of 1 / [`SumColumns::DIVISOR`] in the matrix of the sums.
const SCALE: f32 = 1.0 / 256.0;
const CODE: i8 = (256 / SumColumns::DIVISOR) as i8;

impl Decoder<'_> {
    /// What a linear layer over the matrix `weight` reads of `x`: `x` itself, or `x` and the sums
    /// of its blocks. Layers with the same `x` share them.
    pub(super) fn layer_input(&mut self, weight: &str, x: &Value) -> Value {
        let columns = x.dims.last().copied().unwrap_or(0);
        let added = match self.weights.get(weight) {
            Some(weight) => weight.encoding.added_columns(columns),
            None => None,
        };
        let Some(added) = added else {
            return x.clone();
        };
        let name = wide_name(&x.name);
        if let Some(wide) = self.wide.get(&name) {
            return wide.clone();
        }
        let sums = self.sums(x, columns, added);
        let wide = self.graph.concat(&name, &[x, &sums], x.dims.len() - 1);
        self.wide.insert(name, wide.clone());
        wide
    }

    /// The sums of the blocks of `x`, divided by [`SumColumns::DIVISOR`], once for each group of
    /// added columns: a linear layer with codes of 8 bits, which are the same for all `x` of this
    /// width.
    fn sums(&mut self, x: &Value, columns: u64, added: SumColumns) -> Value {
        let rows = added.count();
        let mut codes = vec![0i8; (rows * columns) as usize];
        let block = columns / added.blocks().max(1);
        for index in 0..added.blocks() {
            for row in [index, added.group() + index] {
                let first = (row * columns + index * block) as usize;
                codes[first..][..block as usize].fill(CODE);
            }
        }
        let name = |part| format!("block_sums.{columns}.{part}");
        let codes = self.graph.codes(&name("codes"), &[rows, columns], &codes);
        let scales = vec![SCALE; rows as usize];
        let scales = self.graph.constant(&name("scales"), &[rows, 1], &scales);
        let linear = Function::Linear {
            weight: WeightForm::Block,
            bias: false,
        };
        let mut dims = x.dims.clone();
        dims.pop();
        dims.push(rows);
        let attributes = vec![int("block", columns as i64), gain(0)];
        let inputs = [x, &codes, &scales];
        self.graph
            .call(linear, &sums_name(&x.name), &inputs, attributes, dims)
    }
}
