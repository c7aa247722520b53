//! Operators with weights: norm, linear layer and embedding.

use super::decoder::Decoder;
use crate::model::decoder::Embedding;
use crate::model::decoder::tensors::Role;
use crate::model::onnx::proto::AttributeProto;
use crate::model::onnx::{External, Function, Value, element_type, float, gain, int};
use crate::model::weight::WeightForm;

impl Decoder<'_> {
    /// RMSNorm over the last axis of `x`, whose values are stored times `2^-exponent`. An epsilon
    /// times `2^(-2 exponent)` cancels that factor.
    pub(super) fn norm(&mut self, name: &str, role: Role, x: &Value, exponent: i32) -> Value {
        let gamma = self.weight(&role.weight());
        let epsilon = self.model.rms_epsilon * 2f32.powi(-2 * exponent);
        let mut inputs = vec![x];
        inputs.extend(&gamma);
        let attributes = vec![float("epsilon", epsilon)];
        self.graph
            .call(Function::RmsNorm, name, &inputs, attributes, x.dims.clone())
    }

    /// `(x W^T + bias) * 2^exponent`, named after its weights.
    pub(super) fn projection(&mut self, role: Role, x: &Value, exponent: i32) -> Value {
        self.linear(&role.stem(), role, x, exponent)
    }

    /// `(x W^T + bias) * 2^exponent` with the weights of `role`: a matrix, and a bias if there is
    /// one.
    pub(super) fn linear(&mut self, name: &str, role: Role, x: &Value, exponent: i32) -> Value {
        let bias = self.weight(&role.bias());
        self.linear_with(name, role, x, exponent, &bias)
    }

    /// The same with this `bias`; empty for none.
    pub(super) fn linear_with(
        &mut self,
        name: &str,
        role: Role,
        x: &Value,
        exponent: i32,
        bias: &[Value],
    ) -> Value {
        let x = &self.layer_input(&role.weight(), x);
        let matrix = self.weight(&role.weight());
        let (weight, attributes) = self.form(&role.weight(), exponent);
        let mut dims = x.dims.clone();
        dims.pop();
        if let Some(tensor) = self.tensors.get(&role.weight()) {
            dims.extend(tensor.shape.first());
        }
        let function = Function::Linear {
            weight,
            bias: !bias.is_empty(),
        };
        let mut inputs = vec![x];
        inputs.extend(&matrix);
        inputs.extend(bias);
        self.graph.call(function, name, &inputs, attributes, dims)
    }

    /// The rows of the embedding table at `ids`.
    pub(super) fn embedding(&mut self, name: &str, ids: &Value) -> Value {
        let Embedding { scale } = self.model.embedding;
        let role = Role::Embedding;
        let table = self.weight(&role.weight());
        let k = self.profile.residual_exponent;
        // With a scale the rows stay as they are: the scale takes the exponent.
        let gain = if scale.is_some() { 0 } else { -k };
        let (weight, attributes) = self.form(&role.weight(), gain);
        let mut dims = ids.dims.clone();
        dims.push(self.model.hidden.into());
        let mut inputs = vec![ids];
        inputs.extend(&table);
        let function = Function::Embedding { weight };
        let g = &mut self.graph;
        match scale {
            None => g.call(function, name, &inputs, attributes, dims),
            Some(scale) => {
                let rows = format!("{name}.unscaled");
                let rows = g.call(function, &rows, &inputs, attributes, dims);
                g.scaled(name, &rows, scale * 2f32.powi(-k))
            }
        }
    }

    /// The form of the matrix `name`, and the attributes of an operator over it.
    fn form(&self, name: &str, exponent: i32) -> (WeightForm, Vec<AttributeProto>) {
        let Some(weight) = self.weights.get(name) else {
            return (WeightForm::Plain, vec![gain(exponent)]);
        };
        let columns = weight.shape.last().copied().unwrap_or(0);
        let mut attributes = vec![];
        if let Some(block) = weight.encoding.block(columns) {
            attributes.push(int("block", block as i64));
        }
        attributes.push(gain(exponent));
        (weight.encoding.form(), attributes)
    }

    /// The parts of weight `name` in their order; empty if there is no such weight.
    pub(super) fn weight(&mut self, name: &str) -> Vec<Value> {
        let Some(weight) = self.weights.get(name) else {
            return vec![];
        };
        let mut values = vec![];
        // `Weights` has checked the parts.
        for spec in weight.encoding.parts(&weight.shape).unwrap_or_default() {
            let full = format!("{name}/{}", spec.part.name());
            values.push(self.graph.external(&External {
                name: &full,
                location: format!("weights/{full}"),
                element: element_type(spec.element),
                dims: &spec.shape,
                size_bytes: spec.size_bytes().unwrap_or(0),
            }));
        }
        values
    }
}
