//! What the host gives a decoder graph and takes from it, by the names of Genie, Qualcomm's
//! runtime. This is the only list of them. A graph of T tokens in a context of C:
//!
//! | input | type | shape | what the host puts there |
//! |---|---|---|---|
//! | `input_ids` | i32 | `[1, T]` | the tokens |
//! | `inputs_embeds` | f32 | `[1, T, hidden]` | their rows, where the CPU looks them up |
//! | `attention_mask` | f32 | `[1, 1, T, C]` | 0 where a token sees another, a large negative number elsewhere |
//! | `position_ids_cos`, `position_ids_sin` | f32 | `[1, 1, T, dims / 2]` | of the angles by which each position turns |
//! | `past_key_N_in` | f32 | `[kv_heads, 1, head_dim, C - T]` | the keys of layer N so far |
//! | `past_value_N_in` | f32 | `[kv_heads, 1, C - T, head_dim]` | its values so far |
//!
//! `past_key_N_out` and `past_value_N_out` are the keys and values of the T tokens, `logits` what
//! follows each of them.

use std::ops::Range;

use super::spec::{Attention, DecoderSpec, Rotary, Window, not_supported};
use crate::base::Result;
use crate::model::shards::Shard;

/// The rows of the tokens, where another graph looks them up.
pub const EMBEDDINGS: &str = "inputs_embeds";

/// The logits after each token: the output of the last graph.
pub const LOGITS: &str = "logits";

/// The mask of attention.
pub const MASK: &str = "attention_mask";

const TOKEN_IDS: &str = "input_ids";
const ROTARY_COS: &str = "position_ids_cos";
const ROTARY_SIN: &str = "position_ids_sin";

/// What feeds the graphs, as problems call it.
const HOST: &str = "the host of the graphs";

/// What a graph is fed by its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostInput {
    /// The tokens.
    TokenIds,
    /// The rows of the tokens.
    Embeddings,
    /// Which tokens each token sees.
    Mask,
    /// The cosines of the rotary embedding.
    RotaryCos,
    /// Its sines.
    RotarySin,
    /// What a layer remembers of the tokens before.
    Past(Cache, u32),
}

/// What a layer remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cache {
    /// Keys.
    Key,
    /// Values.
    Value,
}

impl HostInput {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            HostInput::TokenIds => TOKEN_IDS.into(),
            HostInput::Embeddings => EMBEDDINGS.into(),
            HostInput::Mask => MASK.into(),
            HostInput::RotaryCos => ROTARY_COS.into(),
            HostInput::RotarySin => ROTARY_SIN.into(),
            HostInput::Past(cache, layer) => format!("{}{layer}_in", cache.prefix()),
        }
    }

    /// The input of this name, if a host gives it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            TOKEN_IDS => Some(HostInput::TokenIds),
            EMBEDDINGS => Some(HostInput::Embeddings),
            MASK => Some(HostInput::Mask),
            ROTARY_COS => Some(HostInput::RotaryCos),
            ROTARY_SIN => Some(HostInput::RotarySin),
            _ => Cache::parse(name, "_in").map(|(cache, layer)| HostInput::Past(cache, layer)),
        }
    }
}

impl Cache {
    /// Keys, then values.
    pub const ALL: [Cache; 2] = [Cache::Key, Cache::Value];

    fn prefix(self) -> &'static str {
        match self {
            Cache::Key => "past_key_",
            Cache::Value => "past_value_",
        }
    }

    fn parse(name: &str, ending: &str) -> Option<(Self, u32)> {
        let layer = |cache: Cache| {
            let number = name.strip_prefix(cache.prefix())?.strip_suffix(ending)?;
            Some((cache, number.parse().ok()?))
        };
        Cache::ALL.into_iter().find_map(layer)
    }

    /// The output of a graph with those of its tokens, which the host keeps for the next call.
    pub fn output(self, layer: u32) -> String {
        format!("{}{layer}_out", self.prefix())
    }

    /// Whether keys or values go in or come out under this name, and of which layer.
    pub fn named(name: &str) -> Option<(Self, u32)> {
        Cache::parse(name, "_in").or_else(|| Cache::parse(name, "_out"))
    }
}

/// What a graph of `shard` is fed by its host, in the order of the graph. The first input of a
/// shard that is not the first comes from the shard before.
pub fn inputs(shard: &Shard) -> Vec<HostInput> {
    let first = if shard.has_embedding() {
        HostInput::TokenIds
    } else {
        HostInput::Embeddings
    };
    let shared = [HostInput::Mask, HostInput::RotaryCos, HostInput::RotarySin];
    let past =
        layers(shard).flat_map(|layer| Cache::ALL.map(|cache| HostInput::Past(cache, layer)));
    let first = (shard.first == 0).then_some(first);
    first.into_iter().chain(shared).chain(past).collect()
}

/// The keys and values that a graph of `shard` gives, in the order of the graph.
pub fn cache_outputs(shard: &Shard) -> Vec<String> {
    layers(shard)
        .flat_map(|layer| Cache::ALL.map(|cache| cache.output(layer)))
        .collect()
}

fn layers(shard: &Shard) -> Range<u32> {
    shard.first..shard.end
}

/// The rotary embedding whose cosines and sines the host gives. Refused: none, or more than one.
pub fn rotary(spec: &DecoderSpec) -> Result<&Rotary> {
    let mut rotaries = spec
        .layers
        .iter()
        .filter_map(|layer| layer.attention.rotary.as_ref());
    let first = rotaries
        .next()
        .ok_or_else(|| not_supported(HOST, "a model without RoPE"))?;
    match rotaries.find(|other| *other != first) {
        None => Ok(first),
        Some(_) => Err(not_supported(HOST, "layers of different RoPE")),
    }
}

/// The shapes of inputs.
#[derive(Clone, Copy, Debug)]
pub struct Shapes {
    /// Tokens of one call.
    tokens: u64,
    /// Tokens that attention sees: past and new.
    context: u64,
    hidden: u64,
    kv_heads: u64,
    head_dim: u64,
    rotary_dims: u64,
}

impl Shapes {
    /// Of graphs of `spec` that take `tokens` in a `context`. Refused: what one mask and one pair
    /// of cosines and sines cannot say.
    pub fn new(spec: &DecoderSpec, tokens: u64, context: u64) -> Result<Self> {
        for layer in &spec.layers {
            let Attention {
                // Of what is in the graph, the host knows nothing.
                qkv_bias: _,
                qk_norm: _,
                score_scale: _,
                score_cap: _,
                rotary: _,
                window,
            } = &layer.attention;
            match window {
                Window::Full => {}
                Window::Sliding(_) => return Err(not_supported(HOST, window)),
            }
        }
        let Rotary {
            layout: _,
            dims,
            base: _,
        } = rotary(spec)?;
        Ok(Shapes {
            tokens,
            context,
            hidden: spec.hidden.into(),
            kv_heads: spec.kv_heads.into(),
            head_dim: spec.head_dim.into(),
            rotary_dims: (*dims).into(),
        })
    }

    /// The shape of `input`.
    pub fn of(&self, input: HostInput) -> Vec<u64> {
        let past = self.context.saturating_sub(self.tokens);
        match input {
            HostInput::TokenIds => vec![1, self.tokens],
            HostInput::Embeddings => vec![1, self.tokens, self.hidden],
            HostInput::Mask => vec![1, 1, self.tokens, self.context],
            HostInput::RotaryCos | HostInput::RotarySin => {
                vec![1, 1, self.tokens, self.rotary_dims / 2]
            }
            HostInput::Past(Cache::Key, _) => vec![self.kv_heads, 1, self.head_dim, past],
            HostInput::Past(Cache::Value, _) => vec![self.kv_heads, 1, past, self.head_dim],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shards::{Place, Processor};

    #[test]
    fn a_graph_is_fed_by_these_names_and_shapes() {
        let spec = DecoderSpec::tiny();
        let shapes = Shapes::new(&spec, 3, 16).unwrap();
        let found: Vec<String> = inputs(&Shard::whole(&spec))
            .into_iter()
            .map(|input| format!("{} {:?}", input.name(), shapes.of(input)))
            .collect();
        assert_eq!(
            found,
            [
                "input_ids [1, 3]",
                "attention_mask [1, 1, 3, 16]",
                "position_ids_cos [1, 1, 3, 2]",
                "position_ids_sin [1, 1, 3, 2]",
                "past_key_0_in [1, 1, 4, 13]",
                "past_value_0_in [1, 1, 13, 4]",
                "past_key_1_in [1, 1, 4, 13]",
                "past_value_1_in [1, 1, 13, 4]",
            ]
        );
        assert_eq!(
            cache_outputs(&Shard::whole(&spec)),
            [
                "past_key_0_out",
                "past_value_0_out",
                "past_key_1_out",
                "past_value_1_out"
            ]
        );
    }

    #[test]
    fn a_shard_is_fed_what_its_layers_read() {
        let spec = DecoderSpec::tiny();
        let place = Place {
            embedding: Processor::Cpu,
            ..Place::default()
        };
        let shards = Shard::cut(&spec, 2, place).unwrap();
        let firsts: Vec<String> = shards
            .iter()
            .map(|shard| {
                let all = inputs(shard);
                format!("{} .. {}", all[0].name(), all[all.len() - 1].name())
            })
            .collect();
        assert_eq!(
            firsts,
            [
                "inputs_embeds .. past_value_0_in",
                "attention_mask .. past_value_1_in"
            ]
        );
    }

    #[test]
    fn an_input_is_found_by_its_name() {
        let spec = DecoderSpec::tiny();
        for input in inputs(&Shard::whole(&spec))
            .into_iter()
            .chain([HostInput::Embeddings])
        {
            assert_eq!(HostInput::named(&input.name()), Some(input));
        }
        for name in [
            "past_key_0_out",
            "past_key_x_in",
            "blk.0.residual",
            "input_ids_",
        ] {
            assert_eq!(HostInput::named(name), None);
        }
        assert_eq!(Cache::named("past_value_7_out"), Some((Cache::Value, 7)));
        assert_eq!(Cache::named("past_key_7_in"), Some((Cache::Key, 7)));
        assert_eq!(Cache::named("attention_mask"), None);
    }

    #[test]
    fn what_one_mask_and_one_table_cannot_say_is_refused() {
        let check = |change: fn(&mut DecoderSpec), expected: &str| {
            let mut spec = DecoderSpec::tiny();
            change(&mut spec);
            let problem = Shapes::new(&spec, 3, 16).unwrap_err();
            assert_eq!(
                problem.message,
                format!("the host of the graphs does not support {expected}")
            );
        };
        check(
            |spec| spec.layers[1].attention.window = Window::Sliding(5),
            "a sliding window of 5 tokens",
        );
        check(
            |spec| spec.layers[1].attention.rotary.as_mut().unwrap().base = 1e6,
            "layers of different RoPE",
        );
        check(
            |spec| {
                for layer in &mut spec.layers {
                    layer.attention.rotary = None;
                }
            },
            "a model without RoPE",
        );
        let mut spec = DecoderSpec::tiny();
        spec.layers[1].attention.rotary = None;
        assert!(
            Shapes::new(&spec, 3, 16).is_ok(),
            "a table that some layers read"
        );
    }
}
