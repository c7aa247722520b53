//! The decoder as ONNX: inputs, layers and outputs of a graph. Attention is in `attention.rs`, the
//! operators with weights are in `operators.rs`.
//!
//! Each operator is used in a form that is proven on the device. The order in which nodes and names
//! are made is part of the bytes.

use std::collections::BTreeMap;

use super::centre::KeyCentres;
use super::weights::Weights;
use crate::base::{Code, Problem, Result};
use crate::model::decoder::inputs::{Cache, HostInput, LOGITS, RotaryTables, Shapes, inputs};
use crate::model::decoder::shards::{OuterModule, ROWS, Shard};
use crate::model::decoder::tensors::{LayerTensor, Role, TensorSpec, by_name};
use crate::model::decoder::{Activation, DecoderSpec, Head, Layer, Norms};
use crate::model::onnx::proto::{ModelProto, element};
use crate::model::onnx::{Builder, Grid, Value};

/// The section of a model that one graph computes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subgraph {
    /// Layers, with embedding and head unless these run on the CPU.
    Layers(Shard),
    /// An embedding or head that runs on the CPU.
    Outer(OuterModule),
}

impl Subgraph {
    /// The file name of its graph `role`, without the extension.
    pub(super) fn graph_stem(&self, role: &str) -> String {
        match self {
            Subgraph::Layers(shard) => shard.graph_stem(role),
            Subgraph::Outer(module) => module.graph_stem(role),
        }
    }

    /// Its number or name, which Genie expects at the end of a graph's name.
    pub(super) fn suffix(&self) -> String {
        match self {
            Subgraph::Layers(Shard { part, of, .. }) => format!("{part}_of_{of}"),
            Subgraph::Outer(module) => module.name().into(),
        }
    }

    /// Its shard, if the model is cut and this is not an end.
    pub(super) fn shard(&self) -> Option<Shard> {
        match self {
            Subgraph::Layers(shard) if !shard.is_whole() => Some(*shard),
            _ => None,
        }
    }
}

/// One graph of a model.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    /// Name of the graph.
    pub(super) name: String,
    /// Tokens of one call.
    pub(super) tokens: u64,
    /// Tokens that attention covers: past and new.
    pub(super) context: u64,
    /// k: the residual stream is stored times `2^-k`.
    pub(super) residual_exponent: i32,
    /// j: gate*up is stored times `2^-j`.
    pub(super) ffn_exponent: i32,
    /// What it computes.
    pub(super) subgraph: Subgraph,
}

/// The subject of the problems of unsupported parts.
pub(super) const GRAPH: &str = "the graph";

/// The graph of `profile`, with the values of `grids` rounded. `weights` have been checked against
/// `model`, `centres` are of its layers. Refused: parts of a decoder that it has no operators for.
pub(super) fn decoder(
    model: &DecoderSpec,
    weights: &Weights,
    centres: &KeyCentres,
    profile: &Profile,
    grids: &BTreeMap<String, Grid>,
) -> Result<ModelProto> {
    let graph = match profile.subgraph {
        Subgraph::Layers(_) => Builder::rounding(grids.clone()),
        // The CPU computes floats. The graph that reads them rounds them.
        Subgraph::Outer(_) => Builder::default(),
    };
    let mut decoder = Decoder {
        graph,
        shapes: Shapes::new(model, profile.tokens, profile.context)?,
        tensors: by_name(model),
        rotaries: RotaryTables::of(model)?,
        model,
        weights,
        centres,
        profile,
        wide: BTreeMap::new(),
    };
    match profile.subgraph {
        Subgraph::Layers(shard) => decoder.layers(shard)?,
        Subgraph::Outer(module) => decoder.outer_module(module)?,
    }
    Ok(decoder.graph.finish(&profile.name))
}

/// Builds the graph of a profile.
pub(super) struct Decoder<'a> {
    pub(super) graph: Builder,
    shapes: Shapes,
    pub(super) tensors: BTreeMap<String, TensorSpec>,
    pub(super) rotaries: RotaryTables<'a>,
    pub(super) model: &'a DecoderSpec,
    pub(super) weights: &'a Weights,
    pub(super) centres: &'a KeyCentres,
    pub(super) profile: &'a Profile,
    /// Inputs of layers with the sums of their blocks, by name.
    pub(super) wide: BTreeMap<String, Value>,
}

/// The values that the host feeds.
#[derive(Default)]
pub(super) struct HostValues(BTreeMap<HostInput, Value>);

impl HostValues {
    pub(super) fn find(&self, input: HostInput) -> Option<&Value> {
        self.0.get(&input)
    }

    pub(super) fn get(&self, input: HostInput) -> Result<&Value> {
        let Some(value) = self.find(input) else {
            let message = format!("the host does not feed `{}`", input.name());
            return Err(Problem::new(Code::GraphInput, message));
        };
        Ok(value)
    }
}

impl Decoder<'_> {
    fn layers(&mut self, shard: Shard) -> Result<()> {
        let mut residual = None;
        if let Some(before) = shard.first.checked_sub(1) {
            let name = residual_after(before);
            residual = Some(
                self.graph
                    .input(&name, element::FLOAT, &self.stream_shape()),
            );
        }
        // What all layers share comes before the caches.
        let mut host = HostValues::default();
        let host_inputs = inputs(self.model, &shard)?;
        for input in &host_inputs {
            if !matches!(input, HostInput::Past(..)) {
                host.0.insert(*input, self.host_input(*input));
            }
        }
        let shared = self.declare_shared(&shard, &host)?;
        for input in host_inputs {
            if matches!(input, HostInput::Past(..)) {
                host.0.insert(input, self.host_input(input));
            }
        }

        let mut residual = match residual {
            Some(residual) => residual,
            None => self.first_residual(&shard, &host)?,
        };
        let mut new_caches = vec![];
        for layer in shard.first..shard.end {
            let spec = self.model.layer(layer)?;
            let past = [
                host.get(HostInput::Past(Cache::Key, layer))?,
                host.get(HostInput::Past(Cache::Value, layer))?,
            ];
            let (delta, new) = self.attention(layer, spec, &residual, past, &shared)?;
            let name = format!("blk.{layer}.attn_residual");
            residual = self.graph.elementwise("Add", &name, &residual, &delta);
            let delta = self.feed_forward(layer, spec, &residual)?;
            let name = residual_after(layer);
            residual = self.graph.elementwise("Add", &name, &residual, &delta);
            new_caches.extend(new);
        }
        let result = self.last_output(&shard, residual)?;
        self.graph.output(&result);
        for cache in &new_caches {
            self.graph.output(cache);
        }
        Ok(())
    }

    fn outer_module(&mut self, module: OuterModule) -> Result<()> {
        let result = match module {
            OuterModule::Embedding => {
                let ids = self.host_input(HostInput::TokenIds);
                self.embedding(module.value(), &ids)
            }
            OuterModule::Head => {
                let shape = self.stream_shape();
                let normal = self.graph.input(module.value(), element::FLOAT, &shape);
                self.head(&normal)
            }
        };
        self.graph.output(&result);
        Ok(())
    }

    /// The shape of the residual stream.
    fn stream_shape(&self) -> [u64; 4] {
        [1, 1, self.profile.tokens, self.model.hidden.into()]
    }

    /// Declares an input that the host feeds.
    fn host_input(&mut self, input: HostInput) -> Value {
        let kind = match input {
            HostInput::TokenIds => element::INT32,
            _ => element::FLOAT,
        };
        self.graph
            .input(&input.name(), kind, &self.shapes.of(input))
    }

    /// The residual stream before the first layer: from token ids, or from their rows if the CPU
    /// has looked them up.
    fn first_residual(&mut self, shard: &Shard, host: &HostValues) -> Result<Value> {
        let rows = if shard.has_embedding() {
            self.embedding(ROWS, host.get(HostInput::TokenIds)?)
        } else {
            host.get(HostInput::Embeddings)?.clone()
        };
        let name = Role::Embedding.stem();
        Ok(self.graph.reshape(&name, &rows, &self.stream_shape()))
    }

    /// The output after the last layer of `shard`: logits, the input of a head on the CPU, or the
    /// residual stream as it is.
    fn last_output(&mut self, shard: &Shard, residual: Value) -> Result<Value> {
        if !shard.is_last() {
            return Ok(residual);
        }
        let exponent = self.profile.residual_exponent;
        let normal = OuterModule::Head.value();
        let normal = self.norm(normal, Role::FinalNorm, &residual, exponent);
        if shard.has_head() {
            Ok(self.head(&normal))
        } else {
            Ok(normal)
        }
    }

    fn head(&mut self, normal: &Value) -> Value {
        let Head {
            tied,
            scale,
            soft_cap,
        } = self.model.head;
        let matrix = if tied { Role::Embedding } else { Role::Head };
        let scaled = match soft_cap {
            Some(_) => "logits.uncapped",
            None => LOGITS,
        };
        let logits = match scale {
            Some(scale) => {
                let logits = self.linear("logits.unscaled", matrix, normal, 0);
                self.graph.scaled(scaled, &logits, scale)
            }
            None => self.linear(scaled, matrix, normal, 0),
        };
        match soft_cap {
            Some(cap) => {
                let names = ["logits.share", "logits.tanh", LOGITS];
                self.graph.soft_cap(names, &logits, cap)
            }
            None => logits,
        }
    }

    /// What the feed-forward layer adds to the residual stream: `down(act(gate(x)) * up(x))`.
    fn feed_forward(&mut self, layer: u32, spec: &Layer, x: &Value) -> Result<Value> {
        let Layer {
            norms,
            attention: _,
            activation,
            // `inspect` cuts it.
            fused_gate_up: _,
            residual_scale,
        } = spec;
        let j = self.profile.ffn_exponent;
        let name = |what: &str| format!("blk.{layer}.{what}");
        let role = |tensor| Role::Layer(layer, tensor);
        let (x, k) = self.branch_input(role(LayerTensor::FeedForwardNorm), *norms, x);
        let gate = self.projection(role(LayerTensor::Gate), &x, k);
        let up = self.projection(role(LayerTensor::Up), &x, k - j);
        let g = &mut self.graph;
        let active = match activation {
            Activation::Silu => {
                let sigmoid = g.sigmoid(&name("gate.sigmoid"), &gate);
                g.elementwise("Mul", &name("gate.silu"), &gate, &sigmoid)
            }
            Activation::GeluTanh => gelu_tanh(g, &name("gate"), &gate),
        };
        let gate_up = g.elementwise("Mul", &name("gate_up"), &active, &up);
        let branch = Branch {
            name: name("down"),
            matrix: role(LayerTensor::Down),
            exponent: j,
            norm: role(LayerTensor::FeedForwardPostNorm),
        };
        Ok(self.branch_output(&branch, *norms, *residual_scale, &gate_up))
    }

    /// The input of a branch: the residual stream `x`, normalized or as it is, and the exponent k
    /// if its values are stored times `2^-k`.
    pub(super) fn branch_input(&mut self, norm: Role, norms: Norms, x: &Value) -> (Value, i32) {
        let exponent = self.profile.residual_exponent;
        if norms.before() {
            (self.norm(&norm.stem(), norm, x, exponent), 0)
        } else {
            (x.clone(), exponent)
        }
    }

    /// What `branch` adds to the residual stream.
    pub(super) fn branch_output(
        &mut self,
        branch: &Branch,
        norms: Norms,
        residual_scale: Option<f32>,
        x: &Value,
    ) -> Value {
        let Branch {
            name,
            matrix,
            exponent,
            norm,
        } = branch;
        let k = self.profile.residual_exponent;
        let scale = residual_scale.unwrap_or(1.0);
        let (output, factor) = if norms.after() {
            let output = self.linear(name, *matrix, x, *exponent);
            let output = self.norm(&norm.stem(), *norm, &output, 0);
            (output, scale * 2f32.powi(-k))
        } else {
            let (power, rest) = power_and_rest(scale);
            (self.linear(name, *matrix, x, exponent - k + power), rest)
        };
        if factor == 1.0 {
            return output;
        }
        self.graph
            .scaled(&format!("{name}.scaled"), &output, factor)
    }
}

/// `scale` as `2^power * rest` with a rest above 0.5 and at most 1 (or the same below zero). A branch
/// that is multiplied by a small number may be large before; most of it can be in its weights.
fn power_and_rest(scale: f32) -> (i32, f32) {
    match libm::frexpf(scale) {
        (rest, power) if rest.abs() == 0.5 => (power - 1, 2.0 * rest),
        (rest, power) => (power, rest),
    }
}

/// The end of a branch.
pub(super) struct Branch {
    /// The name of the result of its last matrix.
    pub(super) name: String,
    pub(super) matrix: Role,
    /// Its input is stored times `2^-exponent`.
    pub(super) exponent: i32,
    /// The norm of its output, if there is one.
    pub(super) norm: Role,
}

/// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`. The cube is computed as `x (a + b x^2)`:
/// where `x^2` overflows fp16, tanh is 1 or -1 just the same.
fn gelu_tanh(g: &mut Builder, name: &str, x: &Value) -> Value {
    let part = |what: &str| format!("{name}.{what}");
    let root = std::f64::consts::FRAC_2_PI.sqrt();
    let one = g.scalar("gelu.one", 1.0);
    let linear = g.scalar("gelu.linear", root as f32);
    let square = g.elementwise("Mul", &part("square"), x, x);
    let cubic = g.scaled(&part("cubic"), &square, (0.044715 * root) as f32);
    let slope = g.elementwise("Add", &part("slope"), &cubic, &linear);
    let inner = g.elementwise("Mul", &part("inner"), x, &slope);
    let tanh = g.tanh(&part("tanh"), &inner);
    let share = g.elementwise("Add", &part("share"), &tanh, &one);
    let half = g.scaled(&part("half"), x, 0.5);
    g.elementwise("Mul", &part("gelu"), &half, &share)
}

/// The name of the residual stream after `layer`.
fn residual_after(layer: u32) -> String {
    format!("blk.{layer}.residual")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the inputs of the graph of `shard`.
    fn input_names(model: &DecoderSpec, shard: Shard) -> Result<Vec<String>> {
        let profile = Profile {
            name: "prompt".into(),
            tokens: 3,
            context: 16,
            residual_exponent: 0,
            ffn_exponent: 0,
            subgraph: Subgraph::Layers(shard),
        };
        let (weights, centres, grids) = Default::default();
        let graph = decoder(model, &weights, &centres, &profile, &grids)?;
        let inputs = graph.graph.unwrap_or_default().input;
        Ok(inputs.into_iter().map(|input| input.name).collect())
    }

    #[test]
    fn a_graph_has_the_inputs_of_the_host_input_table() {
        let model = DecoderSpec::tiny();
        for shard in Shard::cut(&model, 2, Default::default()).unwrap() {
            let mut expected = vec![];
            if let Some(before) = shard.first.checked_sub(1) {
                expected.push(residual_after(before));
            }
            for input in inputs(&model, &shard).unwrap() {
                expected.push(input.name());
            }
            assert_eq!(input_names(&model, shard).unwrap(), expected);
        }
    }

    #[test]
    fn a_scale_is_a_power_of_two_and_a_rest() {
        assert_eq!(power_and_rest(1.0), (0, 1.0));
        assert_eq!(power_and_rest(0.22), (-2, 0.88));
        assert_eq!(power_and_rest(0.25), (-2, 1.0));
        assert_eq!(power_and_rest(3.0), (2, 0.75));
    }

    #[test]
    fn every_part_of_a_decoder_has_operators() {
        for (part, model) in DecoderSpec::variants() {
            let names = input_names(&model, Shard::whole(&model));
            assert!(names.is_ok(), "{part}: {names:?}");
        }
    }
}
