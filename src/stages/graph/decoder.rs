//! The decoder as ONNX, in a form that is proven op by op on the device.
//!
//! The heads that share a key are folded into the rows of one matrix product, so that no key is
//! repeated; q is scaled before the scores, which could overflow a half otherwise; the caches keep
//! Genie's shapes, with the key heads as the batch.

use std::collections::BTreeMap;

use super::centre::{KeyCentre, KeyCentres};
use super::weights::Weights;
use crate::base::{Code, Problem, Result};
use crate::model::calibration::{KEY_SHIFT, KEY_TURN};
use crate::model::decoder::inputs::{Cache, HostInput, LOGITS, Shapes, inputs};
use crate::model::decoder::tensors::{LayerTensor, Role};
use crate::model::decoder::{
    Activation, Attention, DecoderSpec, Embedding, Head, Layer, Norms, QkNorm, Rotary, Window,
    not_supported, refuse_any,
};
use crate::model::onnx::proto::{AttributeProto, ModelProto, element};
use crate::model::onnx::{
    Builder, External, Function, Grid, Value, element_type, float, gain, int,
};
use crate::model::shards::{End, ROWS, Shard};
use crate::model::weight::WeightForm;

/// What a graph computes of a model.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece {
    /// Layers, with the ends that are not the CPU's.
    Layers(Shard),
    /// An end that is the CPU's.
    End(End),
}

impl Piece {
    /// What the file of its graph `role` is called, but for the ending.
    pub(super) fn graph_stem(&self, role: &str) -> String {
        match self {
            Piece::Layers(shard) => shard.graph_stem(role),
            Piece::End(end) => end.graph_stem(role),
        }
    }

    /// Which of the pieces it is, as Genie has it at the end of a graph's name.
    pub(super) fn suffix(&self) -> String {
        match self {
            Piece::Layers(Shard { part, of, .. }) => format!("{part}_of_{of}"),
            Piece::End(end) => end.name().into(),
        }
    }

    /// What it computes of the model, if it is neither all nor an end.
    pub(super) fn shard(&self) -> Option<Shard> {
        match self {
            Piece::Layers(shard) if !shard.is_whole() => Some(*shard),
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
    /// Tokens that attention sees: past and new.
    pub(super) context: u64,
    /// k: the residual stream is held times `2^-k`.
    pub(super) residual_exponent: i32,
    /// j: gate*up is held times `2^-j`.
    pub(super) ffn_exponent: i32,
    /// What it computes.
    pub(super) piece: Piece,
}

/// What this file calls itself in problems.
const GRAPH: &str = "the graph";

/// The graph of `profile`, the values of `grids` rounded. `weights` have been checked against
/// `model`, `centres` are of its layers. Refused: parts of a decoder that it has no operators for.
pub(super) fn decoder(
    model: &DecoderSpec,
    weights: &Weights,
    centres: &KeyCentres,
    profile: &Profile,
    grids: &BTreeMap<String, Grid>,
) -> Result<ModelProto> {
    let graph = match profile.piece {
        Piece::Layers(_) => Builder::rounding(grids.clone()),
        // The CPU gives floats; who takes them rounds them.
        Piece::End(_) => Builder::default(),
    };
    let mut decoder = Decoder {
        graph,
        shapes: Shapes::new(model, profile.tokens, profile.context)?,
        model,
        weights,
        centres,
        profile,
    };
    match profile.piece {
        Piece::Layers(shard) => decoder.layers(shard)?,
        Piece::End(end) => decoder.end(end)?,
    }
    Ok(decoder.graph.finish(&profile.name))
}

struct Decoder<'a> {
    graph: Builder,
    shapes: Shapes,
    model: &'a DecoderSpec,
    weights: &'a Weights,
    centres: &'a KeyCentres,
    profile: &'a Profile,
}

/// What the host gives a graph.
struct Given(BTreeMap<HostInput, Value>);

impl Given {
    fn value(&self, input: HostInput) -> Result<&Value> {
        self.0.get(&input).ok_or_else(|| {
            let name = input.name();
            Problem::new(Code::GraphInput, format!("the host gives no `{name}`"))
        })
    }
}

/// What every layer reads.
struct Shared {
    mask: Value,
    cos: Value,
    sin: Value,
    query_scale: Value,
    /// Where keys are centred: `[1 - cos, sin]` of each position, `[1, 1, tokens, head_dim]`.
    turn: Option<Value>,
}

impl Decoder<'_> {
    fn layers(&mut self, shard: Shard) -> Result<()> {
        let residual = shard.first.checked_sub(1).map(|before| {
            let stream = self.stream();
            self.graph
                .input(&residual_after(before), element::FLOAT, &stream)
        });
        // The order of the nodes is part of the bytes: what all layers share comes before the
        // caches.
        let is_cache = |input: &HostInput| matches!(input, HostInput::Past(..));
        let (caches, others): (Vec<_>, Vec<_>) = inputs(&shard).into_iter().partition(is_cache);
        let mut given = Given(BTreeMap::new());
        self.declare(&mut given, others);
        let shared = self.shared(&given)?;
        self.declare(&mut given, caches);

        let mut residual = match residual {
            Some(residual) => residual,
            None => self.opening(&shard, &given)?,
        };
        let mut new_caches = vec![];
        for layer in shard.first..shard.end {
            let spec = self.model.layer(layer)?;
            let past = [
                given.value(HostInput::Past(Cache::Key, layer))?,
                given.value(HostInput::Past(Cache::Value, layer))?,
            ];
            let (attention, new) = self.attention(layer, spec, &residual, past, &shared)?;
            residual = self.graph.elementwise(
                "Add",
                &format!("blk.{layer}.attn_residual"),
                &residual,
                &attention,
            );
            let ffn = self.feed_forward(layer, spec, &residual)?;
            residual = self
                .graph
                .elementwise("Add", &residual_after(layer), &residual, &ffn);
            new_caches.extend(new);
        }
        let result = self.closing(&shard, residual)?;
        self.graph.output(&result);
        new_caches.iter().for_each(|cache| self.graph.output(cache));
        Ok(())
    }

    fn end(&mut self, end: End) -> Result<()> {
        let result = match end {
            End::Embedding => {
                let ids = self.host_input(HostInput::TokenIds);
                self.embedding(end.value(), &ids)?
            }
            End::Head => {
                let normal = self
                    .graph
                    .input(end.value(), element::FLOAT, &self.stream());
                self.head(&normal)?
            }
        };
        self.graph.output(&result);
        Ok(())
    }

    /// The shape of the residual stream.
    fn stream(&self) -> [u64; 4] {
        [1, 1, self.profile.tokens, self.model.hidden.into()]
    }

    fn declare(&mut self, given: &mut Given, inputs: Vec<HostInput>) {
        for input in inputs {
            let value = self.host_input(input);
            given.0.insert(input, value);
        }
    }

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
    fn opening(&mut self, shard: &Shard, given: &Given) -> Result<Value> {
        let rows = if shard.has_embedding() {
            self.embedding(ROWS, given.value(HostInput::TokenIds)?)?
        } else {
            given.value(HostInput::Embeddings)?.clone()
        };
        let name = Role::Embedding.stem();
        Ok(self.graph.reshape(&name, &rows, &self.stream()))
    }

    /// What is given out after the last layer: logits, what the CPU makes logits of, or the stream
    /// as it is.
    fn closing(&mut self, shard: &Shard, residual: Value) -> Result<Value> {
        if !shard.is_last() {
            return Ok(residual);
        }
        let normal = self.norm(End::Head.value(), Role::FinalNorm, &residual);
        if shard.has_head() {
            self.head(&normal)
        } else {
            Ok(normal)
        }
    }

    fn head(&mut self, normal: &Value) -> Result<Value> {
        let Head {
            tied,
            scale,
            soft_cap,
        } = self.model.head;
        refuse_any(GRAPH, "a logit scale", scale)?;
        refuse_any(GRAPH, "a soft cap of the logits", soft_cap)?;
        let matrix = if tied { Role::Embedding } else { Role::Head };
        Ok(self.linear(LOGITS, matrix, normal, 0))
    }

    fn shared(&mut self, given: &Given) -> Result<Shared> {
        let mask = given.value(HostInput::Mask)?.clone();
        let cos = given.value(HostInput::RotaryCos)?.clone();
        let sin = given.value(HostInput::RotarySin)?.clone();
        let query_scale = self
            .graph
            .scalar("query_scale", 1.0 / (self.model.head_dim as f32).sqrt());
        let turn = (!self.centres.is_empty()).then(|| self.turn(&cos, &sin));
        Ok(Shared {
            mask,
            cos,
            sin,
            query_scale,
            turn,
        })
    }

    /// `1 - cos = sin^2 / (1 + cos)`, which keeps its digits for small angles. Angles of a quarter
    /// turn or more multiply zeros only: there the negative cosine is left out, so that nothing
    /// is divided by zero.
    fn turn(&mut self, cos: &Value, sin: &Value) -> Value {
        let g = &mut self.graph;
        let one = g.scalar("one", 1.0);
        let square = g.elementwise("Mul", "key_turn.sin_square", sin, sin);
        let positive = g.relu("key_turn.cos_positive", cos);
        let divisor = g.elementwise("Add", "key_turn.cos_and_one", &positive, &one);
        let versine = g.elementwise("Div", "key_turn.versine", &square, &divisor);
        g.concat("key_turn", &versine, sin, 3)
    }

    /// What attention adds to the residual stream, and the new key and value.
    fn attention(
        &mut self,
        layer: u32,
        spec: &Layer,
        x: &Value,
        past: [&Value; 2],
        shared: &Shared,
    ) -> Result<(Value, [Value; 2])> {
        let Attention {
            // A bias is a weight: it is added where there is one.
            qkv_bias: _,
            qk_norm,
            rotary,
            window,
            score_scale,
            score_cap,
        } = &spec.attention;
        match qk_norm {
            QkNorm::None => {}
            QkNorm::PerHead | QkNorm::WholeRow => return Err(not_supported(GRAPH, qk_norm)),
        }
        match window {
            Window::Full => {}
            Window::Sliding(_) => return Err(not_supported(GRAPH, window)),
        }
        refuse_any(GRAPH, "a score scale", *score_scale)?;
        refuse_any(GRAPH, "a soft cap of the scores", *score_cap)?;
        let Some(rotary) = rotary else {
            return Err(not_supported(GRAPH, "layers without RoPE"));
        };
        let Rotary {
            // `requant` gives the rows of every file in half-split order.
            layout: _,
            dims,
            // The host's cosines and sines are made of it.
            base: _,
        } = rotary;
        if *dims != self.model.head_dim {
            let part = format!("RoPE of {dims} of {} columns", self.model.head_dim);
            return Err(not_supported(GRAPH, part));
        }
        let tokens = self.profile.tokens;
        let context = self.profile.context;
        let [heads, kv_heads, width] =
            [self.model.heads, self.model.kv_heads, self.model.head_dim].map(u64::from);
        let folded = heads / kv_heads * tokens;
        let name = |what: &str| format!("blk.{layer}.{what}");
        let role = |tensor| Role::Layer(layer, tensor);

        let x = self.norm_before(layer, LayerTensor::AttentionNorm, spec.norms, x)?;
        let q = self.projection(role(LayerTensor::Query), &x);
        let k = self.key(role(LayerTensor::Key), layer, &x);
        let v = self.projection(role(LayerTensor::Value), &x);

        let g = &mut self.graph;
        let q = g.reshape(&name("query.split"), &q, &[1, tokens, heads, width]);
        let q = g.transpose(&name("query.heads"), &q, [0, 2, 1, 3]);
        let q = rotate(g, &name("query"), &q, shared);
        let q = g.elementwise("Mul", &name("query.scaled"), &q, &shared.query_scale);
        let q = g.reshape(&name("query.folded"), &q, &[kv_heads, 1, folded, width]);

        let k = g.reshape(&name("key.split"), &k, &[1, tokens, kv_heads, width]);
        let k = g.transpose(&name("key.heads"), &k, [0, 2, 1, 3]);
        let k = match (self.centres.get(&layer), &shared.turn) {
            (Some(centre), Some(turn)) => {
                let k = rotate(g, &name(ROTATED), &k, shared);
                centred(g, &name("key"), &k, centre, turn)
            }
            _ => rotate(g, &name("key"), &k, shared),
        };
        let k = g.transpose(&Cache::Key.output(layer), &k, [1, 0, 3, 2]);
        let v = g.reshape(&name("value.split"), &v, &[1, tokens, kv_heads, width]);
        let v = g.transpose(&Cache::Value.output(layer), &v, [2, 0, 1, 3]);
        let keys = g.concat(&name("keys"), past[0], &k, 3);
        let values = g.concat(&name("values"), past[1], &v, 2);

        let scores = g.matmul(&name("scores"), &q, &keys);
        let scores = g.reshape(&name("scores.heads"), &scores, &[1, heads, tokens, context]);
        let scores = g.elementwise("Add", &name("scores.masked"), &scores, &shared.mask);
        let attention = g.softmax(&name("attention"), &scores);
        let attention = g.reshape(
            &name("attention.folded"),
            &attention,
            &[kv_heads, 1, folded, context],
        );
        let mix = g.matmul(&name("mix"), &attention, &values);
        let mix = g.reshape(&name("mix.heads"), &mix, &[1, heads, tokens, width]);
        let mix = g.transpose(&name("mix.tokens"), &mix, [0, 2, 1, 3]);
        let mix = g.reshape(&name("mix.joined"), &mix, &[1, 1, tokens, heads * width]);
        let output = role(LayerTensor::AttentionOutput);
        let output = self.linear(
            &output.stem(),
            output,
            &mix,
            -self.profile.residual_exponent,
        );
        Ok((output, [k, v]))
    }

    /// The keys before they are rotated; without the part of their bias that is added afterwards.
    fn key(&mut self, role: Role, layer: u32, x: &Value) -> Value {
        let rest = self
            .centres
            .get(&layer)
            .and_then(|centre| centre.rest.as_ref());
        let bias = rest.map(|rest| {
            let name = format!("{}/rest", role.bias());
            self.graph.constant(&name, &[rest.len() as u64], rest)
        });
        let bias = bias.map_or_else(|| self.weight(&role.bias()), |bias| vec![bias]);
        self.linear_with(&role.stem(), role, x, 0, &bias)
    }

    /// What the feed-forward layer adds to the residual stream: `down(silu(gate(x)) * up(x))`.
    fn feed_forward(&mut self, layer: u32, spec: &Layer, x: &Value) -> Result<Value> {
        let Layer {
            norms,
            attention: _,
            activation,
            residual_scale,
        } = spec;
        refuse_any(GRAPH, "a residual scale", *residual_scale)?;
        let Profile {
            residual_exponent: k,
            ffn_exponent: j,
            ..
        } = *self.profile;
        let name = |what: &str| format!("blk.{layer}.{what}");
        let role = |tensor| Role::Layer(layer, tensor);
        let x = self.norm_before(layer, LayerTensor::FeedForwardNorm, *norms, x)?;
        let gate = self.projection(role(LayerTensor::Gate), &x);
        let up = role(LayerTensor::Up);
        let up = self.linear(&up.stem(), up, &x, -j);
        let active = match activation {
            Activation::Silu => {
                let sigmoid = self.graph.sigmoid(&name("gate.sigmoid"), &gate);
                self.graph
                    .elementwise("Mul", &name("gate.silu"), &gate, &sigmoid)
            }
            Activation::GeluTanh => return Err(not_supported(GRAPH, activation)),
        };
        let gate_up = self
            .graph
            .elementwise("Mul", &name("gate_up"), &active, &up);
        Ok(self.linear(&name("down"), role(LayerTensor::Down), &gate_up, j - k))
    }

    /// What a branch reads of the residual stream `x`.
    fn norm_before(
        &mut self,
        layer: u32,
        tensor: LayerTensor,
        norms: Norms,
        x: &Value,
    ) -> Result<Value> {
        let role = Role::Layer(layer, tensor);
        match norms {
            Norms::Before => Ok(self.norm(&role.stem(), role, x)),
            Norms::After | Norms::Around => Err(not_supported(GRAPH, norms)),
        }
    }

    /// RMSNorm of the residual stream: the `2^-k` of the stream leaves through an epsilon times
    /// `2^-2k`.
    fn norm(&mut self, name: &str, role: Role, x: &Value) -> Value {
        let gamma = self.weight(&role.weight());
        let epsilon = self.model.rms_epsilon * 2f32.powi(-2 * self.profile.residual_exponent);
        let inputs: Vec<&Value> = [x].into_iter().chain(&gamma).collect();
        self.graph.call(
            Function::RmsNorm,
            name,
            &inputs,
            vec![float("epsilon", epsilon)],
            x.dims.clone(),
        )
    }

    /// `x W^T + bias`, by the name of its weights.
    fn projection(&mut self, role: Role, x: &Value) -> Value {
        self.linear(&role.stem(), role, x, 0)
    }

    /// `(x W^T + bias) * 2^exponent` with the weights that are `role`: a matrix, and a bias if
    /// there is one.
    fn linear(&mut self, name: &str, role: Role, x: &Value, exponent: i32) -> Value {
        let bias = self.weight(&role.bias());
        self.linear_with(name, role, x, exponent, &bias)
    }

    /// The same with this bias, if there is one.
    fn linear_with(
        &mut self,
        name: &str,
        role: Role,
        x: &Value,
        exponent: i32,
        bias: &[Value],
    ) -> Value {
        let matrix = self.weight(&role.weight());
        let (weight, attributes) = self.form(&role.weight(), exponent);
        let mut dims = x.dims.clone();
        dims.pop();
        dims.extend(matrix.first().and_then(|w| w.dims.first()));
        let function = Function::Linear {
            weight,
            bias: !bias.is_empty(),
        };
        let inputs: Vec<&Value> = [x].into_iter().chain(&matrix).chain(bias).collect();
        self.graph.call(function, name, &inputs, attributes, dims)
    }

    fn embedding(&mut self, name: &str, ids: &Value) -> Result<Value> {
        let Embedding { scale } = self.model.embedding;
        refuse_any(GRAPH, "an embedding scale", scale)?;
        let table = self.weight(&Role::Embedding.weight());
        let (weight, attributes) =
            self.form(&Role::Embedding.weight(), -self.profile.residual_exponent);
        let dims = ids
            .dims
            .iter()
            .copied()
            .chain([u64::from(self.model.hidden)])
            .collect();
        let inputs: Vec<&Value> = [ids].into_iter().chain(&table).collect();
        Ok(self.graph.call(
            Function::Embedding { weight },
            name,
            &inputs,
            attributes,
            dims,
        ))
    }

    /// Which parts the matrix `name` has, and the attributes that go with them.
    fn form(&self, name: &str, exponent: i32) -> (WeightForm, Vec<AttributeProto>) {
        let Some(weight) = self.weights.get(name) else {
            return (WeightForm::Plain, vec![gain(exponent)]);
        };
        let columns = weight.shape.last().copied().unwrap_or(0);
        let block = weight.encoding.block(columns);
        let block = block.map(|block| int("block", block as i64));
        (
            weight.encoding.form(),
            block.into_iter().chain([gain(exponent)]).collect(),
        )
    }

    /// The parts of weight `name` in their order; none if there is no such weight.
    fn weight(&mut self, name: &str) -> Vec<Value> {
        let Some(weight) = self.weights.get(name) else {
            return vec![];
        };
        let mut values = vec![];
        // A weight that was put together has these parts.
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

/// The residual stream after `layer`.
fn residual_after(layer: u32) -> String {
    format!("blk.{layer}.residual")
}

/// Rotary embedding: column i of each head turns with column i + width/2.
fn rotate(g: &mut Builder, name: &str, x: &Value, shared: &Shared) -> Value {
    let part = |what: &str| format!("{name}.{what}");
    let [low, high] = g.halves(name, x);
    let low_cos = g.elementwise("Mul", &part("low_cos"), &low, &shared.cos);
    let high_sin = g.elementwise("Mul", &part("high_sin"), &high, &shared.sin);
    let high_cos = g.elementwise("Mul", &part("high_cos"), &high, &shared.cos);
    let low_sin = g.elementwise("Mul", &part("low_sin"), &low, &shared.sin);
    let new_low = g.elementwise("Sub", &part("low_turned"), &low_cos, &high_sin);
    let new_high = g.elementwise("Add", &part("high_turned"), &high_cos, &low_sin);
    g.concat(name, &new_low, &new_high, 3)
}

/// What a rotated key is called that is centred afterwards; the centred one is the layer's `key`.
const ROTATED: &str = "key.rotated";

/// The rotated keys `k` less their centre (`centre.rs`); `turn` is `[1 - cos, sin]` of each
/// position.
///
/// The constant is the bias of a linear layer, not an operand: Qualcomm's compiler pads a constant
/// that is added to one token with what is in memory, so that the same graph would not give the
/// same bytes (seen in QAIRT 2.51).
fn centred(g: &mut Builder, name: &str, k: &Value, centre: &KeyCentre, turn: &Value) -> Value {
    let part = |what: &str| format!("{name}.{what}");
    let (heads, tokens, width) = (k.dims[1], k.dims[2], k.dims[3]);
    let matrix = g.constant(&part(KEY_TURN), &[heads * width, width], &centre.turn);
    let shift = g.constant(&part(KEY_SHIFT), &[heads * width], &centre.shift);
    let linear = Function::Linear {
        weight: WeightForm::Plain,
        bias: true,
    };
    let inputs = [turn, &matrix, &shift];
    let turned = g.call(
        linear,
        &part("bias_turned"),
        &inputs,
        vec![gain(0)],
        vec![1, 1, tokens, heads * width],
    );
    let turned = g.reshape(&part("bias_split"), &turned, &[1, tokens, heads, width]);
    let turned = g.transpose(&part("bias_centred"), &turned, [0, 2, 1, 3]);
    g.elementwise("Add", name, k, &turned)
}
#[cfg(test)]
mod tests {
    use super::*;

    /// The inputs of the graph of `piece`, or why there is none.
    fn graph(model: &DecoderSpec, piece: Piece) -> Result<Vec<String>> {
        let profile = Profile {
            name: "prompt".into(),
            tokens: 3,
            context: 16,
            residual_exponent: 0,
            ffn_exponent: 0,
            piece,
        };
        let (weights, centres, grids) = Default::default();
        let graph = decoder(model, &weights, &centres, &profile, &grids)?;
        let inputs = graph.graph.unwrap_or_default().input;
        Ok(inputs.into_iter().map(|input| input.name).collect())
    }

    #[test]
    fn a_graph_is_fed_what_the_table_of_host_inputs_says() {
        let model = DecoderSpec::tiny();
        for shard in Shard::cut(&model, 2, Default::default()).unwrap() {
            let found = graph(&model, Piece::Layers(shard)).unwrap();
            let before = shard.first.checked_sub(1).map(residual_after);
            let host = inputs(&shard).into_iter().map(HostInput::name);
            assert_eq!(found, before.into_iter().chain(host).collect::<Vec<_>>());
        }
    }

    #[test]
    fn parts_that_no_graph_is_known_for_are_refused_by_name() {
        for (part, model) in DecoderSpec::variants() {
            let problem = graph(&model, Piece::Layers(Shard::whole(&model))).unwrap_err();
            let expected = format!("does not support {part}");
            assert!(problem.message.ends_with(&expected), "{part}: {problem}");
        }
    }
}
