//! The inputs and outputs of a decoder graph, with the names of Genie, Qualcomm's runtime. This is
//! the only list of them. A graph of T tokens in a context of C:
//!
//! | input | type | shape | value |
//! |---|---|---|---|
//! | `input_ids` | i32 | `[1, T]` | the tokens |
//! | `inputs_embeds` | f32 | `[1, T, hidden]` | their embeddings, if the CPU looks them up |
//! | `attention_mask` | f32 | `[1, 1, T, C]` | 0 for attention, else a large negative number |
//! | `position_ids_cos` | f32 | `[1, 1, T, dims / 2]` | cosines of the angles of each position |
//! | `position_ids_sin` | f32 | `[1, 1, T, dims / 2]` | sines of them |
//! | `past_key_N_in` | f32 | `[kv_heads, 1, head_dim, C - T]` | the cached keys of layer N |
//! | `past_value_N_in` | f32 | `[kv_heads, 1, C - T, head_dim]` | its cached values |
//!
//! `past_key_N_out` and `past_value_N_out` are the keys and values of the T tokens, `logits` the
//! scores of the next token after each of them.

use super::rotary::Rotary;
use super::shards::{EMBEDDINGS, Shard};
use super::spec::{Attention, DecoderSpec, Window, not_supported};
use crate::base::Result;

/// The logits after each token: the output of the last graph.
pub const LOGITS: &str = "logits";

/// The mask of attention.
pub const MASK: &str = "attention_mask";

const TOKEN_IDS: &str = "input_ids";
const ROTARY_COS: &str = "position_ids_cos";
const ROTARY_SIN: &str = "position_ids_sin";

/// The host in messages.
const HOST: &str = "the host of the graphs";

/// An input of a graph that the host fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostInput {
    /// The tokens.
    TokenIds,
    /// The embeddings of the tokens.
    Embeddings,
    /// The attention mask.
    Mask,
    /// The cosines of the rotary embedding.
    RotaryCos,
    /// Its sines.
    RotarySin,
    /// The KV cache of a layer: keys or values of the tokens before.
    Past(Cache, u32),
}

/// A half of the KV cache.
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

    /// The host input of this name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            TOKEN_IDS => Some(HostInput::TokenIds),
            EMBEDDINGS => Some(HostInput::Embeddings),
            MASK => Some(HostInput::Mask),
            ROTARY_COS => Some(HostInput::RotaryCos),
            ROTARY_SIN => Some(HostInput::RotarySin),
            _ => {
                let (cache, layer) = Cache::parse(name, "_in")?;
                Some(HostInput::Past(cache, layer))
            }
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
        let name = name.strip_suffix(ending)?;
        for cache in Cache::ALL {
            if let Some(layer) = name.strip_prefix(cache.prefix()) {
                return Some((cache, layer.parse().ok()?));
            }
        }
        None
    }

    /// The name of the output with the entries of the tokens of a call. The host appends them to
    /// the cache.
    pub fn output(self, layer: u32) -> String {
        format!("{}{layer}_out", self.prefix())
    }

    /// Cache and layer of an input or output of this name, if it is one of a cache.
    pub fn named(name: &str) -> Option<(Self, u32)> {
        Cache::parse(name, "_in").or_else(|| Cache::parse(name, "_out"))
    }
}

/// The host inputs of a graph of `shard`, in the order of the graph. The first input of a shard
/// that is not the first is the output of the shard before.
pub fn inputs(shard: &Shard) -> Vec<HostInput> {
    let mut inputs = vec![];
    if shard.first == 0 && shard.has_embedding() {
        inputs.push(HostInput::TokenIds);
    } else if shard.first == 0 {
        inputs.push(HostInput::Embeddings);
    }
    inputs.extend([HostInput::Mask, HostInput::RotaryCos, HostInput::RotarySin]);
    for layer in shard.first..shard.end {
        for cache in Cache::ALL {
            inputs.push(HostInput::Past(cache, layer));
        }
    }
    inputs
}

/// The outputs with keys and values of a graph of `shard`, in the order of the graph.
pub fn cache_outputs(shard: &Shard) -> Vec<String> {
    let mut outputs = vec![];
    for layer in shard.first..shard.end {
        for cache in Cache::ALL {
            outputs.push(cache.output(layer));
        }
    }
    outputs
}

/// The rotary embedding of `spec`. Not supported: none, or more than one, because there is one pair
/// of cosines and sines.
pub fn rotary(spec: &DecoderSpec) -> Result<&Rotary> {
    let mut found = None;
    for layer in &spec.layers {
        let Some(rotary) = &layer.attention.rotary else {
            continue;
        };
        if found.is_some_and(|found| found != rotary) {
            return Err(not_supported(HOST, "layers of different RoPE"));
        }
        found = Some(rotary);
    }
    match found {
        Some(rotary) => Ok(rotary),
        None => Err(not_supported(HOST, "a model without RoPE")),
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
    /// The shapes for graphs of `spec` with `tokens` tokens in a `context`. Not supported: layers
    /// with different masks or rotary embeddings, because there is one input for all layers.
    pub fn new(spec: &DecoderSpec, tokens: u64, context: u64) -> Result<Self> {
        for layer in &spec.layers {
            let Attention {
                // These are inside the graph.
                qkv_bias: _,
                qk_norm: _,
                score_scale: _,
                score_cap: _,
                rotary: _,
                window,
            } = &layer.attention;
            match window {
                Window::Full => {}
                // Every token is in the window of every later one.
                Window::Sliding(tokens) if u64::from(*tokens) >= context => {}
                Window::Sliding(_) => {
                    let part = format!("{window} in a context of {context}");
                    return Err(not_supported(HOST, part));
                }
            }
        }
        let Rotary {
            layout: _,
            dims,
            // The host computes the table from them.
            base: _,
            scaling: _,
            magnitude: _,
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
    use crate::model::decoder::shards::{Place, Processor};

    #[test]
    fn inputs_have_these_names_and_shapes() {
        let spec = DecoderSpec::tiny();
        let shapes = Shapes::new(&spec, 3, 16).unwrap();
        let mut found = vec![];
        for input in inputs(&Shard::whole(&spec)) {
            found.push(format!("{} {:?}", input.name(), shapes.of(input)));
        }
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
    fn a_shard_has_the_inputs_of_its_layers() {
        let spec = DecoderSpec::tiny();
        let place = Place {
            embedding: Processor::Cpu,
            ..Place::default()
        };
        let shards = Shard::cut(&spec, 2, place).unwrap();
        let mut found = vec![];
        for shard in &shards {
            let all = inputs(shard);
            found.push(format!(
                "{} .. {}",
                all[0].name(),
                all[all.len() - 1].name()
            ));
        }
        assert_eq!(
            found,
            [
                "inputs_embeds .. past_value_0_in",
                "attention_mask .. past_value_1_in"
            ]
        );
    }

    #[test]
    fn an_input_is_found_by_its_name() {
        let spec = DecoderSpec::tiny();
        let mut all = inputs(&Shard::whole(&spec));
        all.push(HostInput::Embeddings);
        for input in all {
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
    fn different_masks_and_rotary_tables_are_not_supported() {
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
            "a sliding window of 5 tokens in a context of 16",
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
            "some layers use the table"
        );
        spec.layers[1].attention.window = Window::Sliding(16);
        assert!(
            Shapes::new(&spec, 3, 16).is_ok(),
            "the window has the whole context"
        );
    }
}
