//! Attention as ONNX.
//!
//! Queries are scaled before the scores, which could overflow fp16 otherwise. The caches have
//! Genie's shapes, with the key heads as the batch.
//!
//! Scores are computed in pieces, `blk.3.scores.0` and so on, so that what one piece needs stays in
//! VTCM: for several tokens by query head, for one token by key head, with its query heads as rows.
//! The prefill of two layers takes 3.1 ms instead of 5.5, and nothing spills (docs/speed.md).

use std::collections::BTreeMap;

use super::centre::KeyCentre;
use super::decoder::{Branch, Decoder, GRAPH, HostValues};
use crate::base::Result;
use crate::model::calibration::{KEY_SHIFT, KEY_TURN};
use crate::model::decoder::inputs::{Cache, HostInput, RotaryTable, short_window};
use crate::model::decoder::shards::Shard;
use crate::model::decoder::tensors::{LayerTensor, Role};
use crate::model::decoder::{Attention, Layer, QkNorm, not_supported};
use crate::model::onnx::{Builder, Function, Value, gain};
use crate::model::weight::WeightForm;

/// The name of a rotated key before it is centred; the centred one is the layer's `key`.
const ROTATED: &str = "key.rotated";

/// What every layer reads.
pub(super) struct Shared {
    /// By the window of layers, if it is shorter than the context.
    masks: BTreeMap<Option<u64>, Value>,
    tables: BTreeMap<RotaryTable, Table>,
}

/// Cosines and sines.
struct Table {
    /// `[1, tokens, 1, dims / 2]`.
    cos: Value,
    /// The same shape.
    sin: Value,
    /// If keys are centred: `[1 - cos, sin]` of each position, `[1, 1, tokens, dims]`.
    rotation: Option<Value>,
}

impl Decoder<'_> {
    /// Declares what every layer of `shard` reads.
    pub(super) fn declare_shared(&mut self, shard: &Shard, host: &HostValues) -> Result<Shared> {
        let masks = self.masks(shard, host.get(HostInput::Mask)?)?;
        let mut tables = BTreeMap::new();
        for table in RotaryTable::ALL {
            // A shard whose layers do not read a table has no such input.
            let Some(cos) = host.find(HostInput::RotaryCos(table)) else {
                continue;
            };
            let sin = host.get(HostInput::RotarySin(table))?;
            let rotation = if self.centres.is_empty() {
                None
            } else {
                Some(versines_and_sines(&mut self.graph, table, cos, sin))
            };
            let dims = [1, self.profile.tokens, 1, cos.dims[3]];
            let name = |what: &str| format!("{}{what}", table.prefix());
            let table_of_tokens = Table {
                cos: self.graph.reshape(&name("cos_of_tokens"), cos, &dims),
                sin: self.graph.reshape(&name("sin_of_tokens"), sin, &dims),
                rotation,
            };
            tables.insert(table, table_of_tokens);
        }
        Ok(Shared { masks, tables })
    }

    /// What attention adds to the residual stream, and the new key and value.
    pub(super) fn attention(
        &mut self,
        layer: u32,
        spec: &Layer,
        x: &Value,
        past: [&Value; 2],
        shared: &Shared,
    ) -> Result<(Value, [Value; 2])> {
        let Attention {
            // A bias is added if there is a weight of its name.
            qkv_bias,
            // `inspect` cuts them.
            fused_qkv: _,
            qk_norm,
            // The host computes the table.
            rotary: _,
            window,
            score_scale,
            score_cap,
        } = &spec.attention;
        let table = self.rotaries.of_layer(spec);
        let table = table.and_then(|table| shared.tables.get(&table));
        let Some(mask) = shared
            .masks
            .get(&short_window(*window, self.profile.context))
        else {
            return Err(not_supported(GRAPH, window));
        };
        if *qkv_bias && !spec.norms.before() {
            // It would be multiplied by the factor of the stored residual stream.
            return Err(not_supported(GRAPH, "biases without RMSNorm before them"));
        }
        let (scale_name, scale) = match score_scale {
            Some(scale) => (format!("blk.{layer}.query_scale"), *scale),
            None => (
                "query_scale".into(),
                1.0 / (self.model.head_dim as f32).sqrt(),
            ),
        };
        let tokens = self.profile.tokens;
        let [heads, kv_heads, width] =
            [self.model.heads, self.model.kv_heads, self.model.head_dim].map(u64::from);
        let name = |what: &str| format!("blk.{layer}.{what}");
        let role = |tensor| Role::Layer(layer, tensor);

        let (x, exponent) = self.branch_input(role(LayerTensor::AttentionNorm), spec.norms, x);
        let q = self.projection(role(LayerTensor::Query), &x, exponent);
        let k = self.key(role(LayerTensor::Key), layer, &x, exponent);
        let v = self.projection(role(LayerTensor::Value), &x, exponent);
        let [q_norm, k_norm] = [LayerTensor::QueryNorm, LayerTensor::KeyNorm].map(role);
        let q = self.heads(&name("query.split"), &q, heads, *qk_norm, q_norm);

        let g = &mut self.graph;
        let q = match table {
            Some(table) => rotate(g, &name("query"), &q, table),
            None => q,
        };
        let scale = g.scalar(&scale_name, scale);
        let q = g.elementwise("Mul", &name("query.scaled"), &q, &scale);

        let k = self.heads(&name("key.split"), &k, kv_heads, *qk_norm, k_norm);
        let g = &mut self.graph;
        let rotation = table.and_then(|table| table.rotation.as_ref());
        let k = match (table, self.centres.get(&layer), rotation) {
            (None, ..) => g.reshape(&name("key"), &k, &[1, tokens, kv_heads, width]),
            (Some(table), Some(centre), Some(rotation)) => {
                let k = rotate(g, &name(ROTATED), &k, table);
                centre_key(g, &name("key"), &k, centre, rotation)
            }
            (Some(table), ..) => rotate(g, &name("key"), &k, table),
        };
        let k = g.transpose(&Cache::Key.output(layer), &k, [2, 0, 3, 1]);
        let v = g.reshape(&name("value.split"), &v, &[1, tokens, kv_heads, width]);
        let v = g.transpose(&Cache::Value.output(layer), &v, [2, 0, 1, 3]);
        let keys = g.concat(&name("keys"), &[past[0], &k], 3);
        let values = g.concat(&name("values"), &[past[1], &v], 2);

        let mix = self.mix(layer, &q, [&keys, &values], *score_cap, mask);
        let matrix = role(LayerTensor::AttentionOutput);
        let branch = Branch {
            name: matrix.stem(),
            matrix,
            exponent: 0,
            norm: role(LayerTensor::AttentionPostNorm),
        };
        let output = self.branch_output(&branch, spec.norms, spec.residual_scale, &mix);
        Ok((output, [k, v]))
    }

    /// The queries or keys `x` by head, `[1, tokens, heads, head_dim]`, normalized.
    fn heads(&mut self, name: &str, x: &Value, heads: u64, qk_norm: QkNorm, norm: Role) -> Value {
        let dims = [1, self.profile.tokens, heads, self.model.head_dim.into()];
        match qk_norm {
            QkNorm::None => self.graph.reshape(name, x, &dims),
            QkNorm::PerHead => {
                let x = self.graph.reshape(name, x, &dims);
                self.norm(&norm.stem(), norm, &x, 0)
            }
            QkNorm::WholeRow => {
                let x = self.norm(&norm.stem(), norm, x, 0);
                self.graph.reshape(name, &x, &dims)
            }
        }
    }

    /// The values of each head, weighted by the softmax of its scores: `[1, 1, tokens, heads *
    /// head_dim]`. `query` is `[1, tokens, heads, head_dim]`.
    fn mix(
        &mut self,
        layer: u32,
        query: &Value,
        [keys, values]: [&Value; 2],
        score_cap: Option<f32>,
        mask: &Value,
    ) -> Value {
        let tokens = self.profile.tokens;
        let [heads, kv_heads, width] =
            [self.model.heads, self.model.kv_heads, self.model.head_dim].map(u64::from);
        let g = &mut self.graph;
        let queries = if tokens == 1 {
            g.parts(query, 2, kv_heads)
        } else {
            let name = format!("blk.{layer}.query.joined");
            let joined = g.reshape(&name, query, &[1, 1, tokens, heads * width]);
            g.parts(&joined, 3, heads)
        };
        let keys = g.parts(keys, 0, kv_heads);
        let values = g.parts(values, 0, kv_heads);
        let pieces_of_key = queries.len() / keys.len();
        let columns = heads * width / queries.len() as u64;
        let mut mixes = vec![];
        for (index, query) in queries.iter().enumerate() {
            let name = |what: &str| format!("blk.{layer}.{what}.{index}");
            let key = index / pieces_of_key;
            let mut scores = g.matmul(&name("scores"), query, &keys[key]);
            if let Some(cap) = score_cap {
                let names = ["scores.share", "scores.tanh", "scores.capped"].map(name);
                scores = g.soft_cap(names.each_ref().map(String::as_str), &scores, cap);
            }
            let scores = g.elementwise("Add", &name("scores.masked"), &scores, mask);
            let attention = g.softmax(&name("attention"), &scores);
            let mix = g.matmul(&name("mix"), &attention, &values[key]);
            mixes.push(g.reshape(&name("mix.joined"), &mix, &[1, 1, tokens, columns]));
        }
        let mixes: Vec<&Value> = mixes.iter().collect();
        g.concat(&format!("blk.{layer}.mix.joined"), &mixes, 3)
    }

    /// The keys before they are rotated, without the part of their bias that is added afterwards.
    fn key(&mut self, role: Role, layer: u32, x: &Value, exponent: i32) -> Value {
        let bias = match self.centres.get(&layer) {
            Some(KeyCentre {
                rest: Some(rest), ..
            }) => {
                let name = format!("{}/rest", role.bias());
                vec![self.graph.constant(&name, &[rest.len() as u64], rest)]
            }
            _ => self.weight(&role.bias()),
        };
        self.linear_with(&role.stem(), role, x, exponent, &bias)
    }
}

/// `[1 - cos, sin]` of each position, with `1 - cos = sin^2 / (1 + cos)`, which keeps its digits
/// for small angles. Angles of a quarter turn or more are multiplied by zeros only: there a
/// negative cosine is replaced by 0, so that nothing is divided by zero.
fn versines_and_sines(g: &mut Builder, table: RotaryTable, cos: &Value, sin: &Value) -> Value {
    let name = format!("{}key_turn", table.prefix());
    let part = |what: &str| format!("{name}.{what}");
    let one = g.scalar("one", 1.0);
    let square = g.elementwise("Mul", &part("sin_square"), sin, sin);
    let positive = g.relu(&part("cos_positive"), cos);
    let divisor = g.elementwise("Add", &part("cos_and_one"), &positive, &one);
    let versine = g.elementwise("Div", &part("versine"), &square, &divisor);
    g.concat(&name, &[&versine, sin], 3)
}

/// Rotary embedding of `x`, `[1, tokens, heads, head_dim]`: column i of each head is rotated with
/// column i + dims/2. Columns from dims on stay as they are.
fn rotate(g: &mut Builder, name: &str, x: &Value, Table { cos, sin, .. }: &Table) -> Value {
    let part = |what: &str| format!("{name}.{what}");
    let (width, half) = (x.dims[3], cos.dims[3]);
    let (low, high, rest) = if width == 2 * half {
        let [low, high] = g.halves(name, x);
        (low, high, None)
    } else {
        let sizes = [("low", half), ("high", half), ("rest", width - 2 * half)];
        let [low, high, rest] = g.pieces(name, x, 3, sizes);
        (low, high, Some(rest))
    };
    let low_cos = g.elementwise("Mul", &part("low_cos"), &low, cos);
    let high_sin = g.elementwise("Mul", &part("high_sin"), &high, sin);
    let high_cos = g.elementwise("Mul", &part("high_cos"), &high, cos);
    let low_sin = g.elementwise("Mul", &part("low_sin"), &low, sin);
    let new_low = g.elementwise("Sub", &part("low_turned"), &low_cos, &high_sin);
    let new_high = g.elementwise("Add", &part("high_turned"), &high_cos, &low_sin);
    let mut columns = vec![&new_low, &new_high];
    columns.extend(&rest);
    g.concat(name, &columns, 3)
}

/// Subtracts their centre from the rotated keys `k`, `[1, tokens, heads, head_dim]` (`centre.rs`).
///
/// The constant is the bias of a linear layer, not an operand: Qualcomm's compiler pads a constant
/// that is added to one token with what is in memory, so that the same graph would not compile to
/// the same bytes (seen in QAIRT 2.51).
fn centre_key(
    g: &mut Builder,
    name: &str,
    k: &Value,
    centre: &KeyCentre,
    rotation: &Value,
) -> Value {
    let part = |what: &str| format!("{name}.{what}");
    let (tokens, heads, width) = (k.dims[1], k.dims[2], k.dims[3]);
    let matrix = g.constant(&part(KEY_TURN), &[heads * width, width], &centre.rotation);
    let shift = g.constant(&part(KEY_SHIFT), &[heads * width], &centre.shift);
    let linear = Function::Linear {
        weight: WeightForm::Plain,
        bias: true,
    };
    let bias = g.call(
        linear,
        &part("bias_turned"),
        &[rotation, &matrix, &shift],
        vec![gain(0)],
        vec![1, 1, tokens, heads * width],
    );
    let bias = g.reshape(&part("bias_centred"), &bias, &[1, tokens, heads, width]);
    g.elementwise("Add", name, k, &bias)
}
