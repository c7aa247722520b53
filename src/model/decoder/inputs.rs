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
//! | `swa_position_ids_cos` | f32 | `[1, 1, T, dims / 2]` | cosines of layers with another RoPE |
//! | `swa_position_ids_sin` | f32 | `[1, 1, T, dims / 2]` | sines of them |
//! | `past_key_N_in` | f32 | `[kv_heads, 1, head_dim, C - T]` | the cached keys of layer N |
//! | `past_value_N_in` | f32 | `[kv_heads, 1, C - T, head_dim]` | its cached values |
//!
//! `past_key_N_out` and `past_value_N_out` are the keys and values of the T tokens, `logits` the
//! scores of the next token after each of them.

use std::collections::{BTreeMap, BTreeSet};

use super::rotary::Rotary;
use super::shards::{EMBEDDINGS, Shard};
use super::spec::{DecoderSpec, Layer, Window, not_supported};
use crate::base::Result;

/// The logits after each token: the output of the last graph.
pub const LOGITS: &str = "logits";

/// The mask of attention.
pub const MASK: &str = "attention_mask";

/// What a mask adds to the score of a token that is not seen: far below any real score, and exact in
/// fp16.
pub const MASKED: f32 = -1000.0;

/// The window of a layer with this one, if it is shorter than the `context`.
pub fn short_window(window: Window, context: u64) -> Option<u64> {
    match window {
        Window::Sliding(tokens) => Some(tokens.into()).filter(|tokens| *tokens < context),
        Window::Full => None,
    }
}

/// The value that a graph adds to the scores of layers with this short window, if they have one.
pub fn mask_name(short_window: Option<u64>) -> String {
    match short_window {
        Some(tokens) => format!("{WINDOW}{tokens}{WINDOW_MASK}"),
        None => MASK.into(),
    }
}

/// Whether [`mask_name`] returns this name.
pub fn is_mask(name: &str) -> bool {
    name == MASK || in_window_mask(name) == Some("")
}

/// What follows the name of the mask of a window in the name of a value from which a graph computes
/// it.
pub fn in_window_mask(name: &str) -> Option<&str> {
    let (tokens, rest) = name.strip_prefix(WINDOW)?.split_once(WINDOW_MASK)?;
    tokens.parse::<u64>().is_ok().then_some(rest)
}

const WINDOW: &str = "window_";
const WINDOW_MASK: &str = ".mask";

const TOKEN_IDS: &str = "input_ids";

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
    /// The cosines of a rotary embedding.
    RotaryCos(RotaryTable),
    /// Its sines.
    RotarySin(RotaryTable),
    /// The KV cache of a layer: keys or values of the tokens before.
    Past(Cache, u32),
}

/// The layers that read the same cosines and sines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RotaryTable {
    /// All layers with RoPE, or those that attend to all tokens.
    Global,
    /// The layers with a sliding window, if they have another RoPE.
    Local,
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
            HostInput::RotaryCos(table) => format!("{}position_ids_cos", table.prefix()),
            HostInput::RotarySin(table) => format!("{}position_ids_sin", table.prefix()),
            HostInput::Past(cache, layer) => format!("{}{layer}_in", cache.prefix()),
        }
    }

    /// The host input of this name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        let mut fixed = vec![HostInput::TokenIds, HostInput::Embeddings, HostInput::Mask];
        for table in RotaryTable::ALL {
            fixed.extend([HostInput::RotaryCos(table), HostInput::RotarySin(table)]);
        }
        if let Some(input) = fixed.into_iter().find(|input| input.name() == name) {
            return Some(input);
        }
        let (cache, layer) = Cache::parse(name, "_in")?;
        Some(HostInput::Past(cache, layer))
    }
}

impl RotaryTable {
    /// The tables, in the order of the inputs.
    pub const ALL: [RotaryTable; 2] = [RotaryTable::Global, RotaryTable::Local];

    /// What the names of its inputs begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            RotaryTable::Global => "",
            RotaryTable::Local => "swa_",
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
pub fn inputs(spec: &DecoderSpec, shard: &Shard) -> Result<Vec<HostInput>> {
    let mut inputs = vec![];
    if shard.first == 0 && shard.has_embedding() {
        inputs.push(HostInput::TokenIds);
    } else if shard.first == 0 {
        inputs.push(HostInput::Embeddings);
    }
    inputs.push(HostInput::Mask);
    let tables = RotaryTables::of(spec)?;
    let mut used = BTreeSet::new();
    for layer in shard.first..shard.end {
        used.extend(tables.of_layer(spec.layer(layer)?));
    }
    for table in used {
        inputs.extend([HostInput::RotaryCos(table), HostInput::RotarySin(table)]);
    }
    for layer in shard.first..shard.end {
        for cache in Cache::ALL {
            inputs.push(HostInput::Past(cache, layer));
        }
    }
    Ok(inputs)
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

/// The tables of cosines and sines of a decoder.
pub struct RotaryTables<'a>(BTreeMap<RotaryTable, &'a Rotary>);

impl<'a> RotaryTables<'a> {
    /// The tables of `spec`. Not supported: none, and more than Genie has names for.
    pub fn of(spec: &'a DecoderSpec) -> Result<Self> {
        let mut by_window = BTreeMap::new();
        let mut first = None;
        let (mut is_one, mut is_one_by_window) = (true, true);
        for layer in &spec.layers {
            let Some(rotary) = &layer.attention.rotary else {
                continue;
            };
            let table = match layer.attention.window {
                Window::Full => RotaryTable::Global,
                Window::Sliding(_) => RotaryTable::Local,
            };
            is_one &= *first.get_or_insert(rotary) == rotary;
            is_one_by_window &= *by_window.entry(table).or_insert(rotary) == rotary;
        }
        let Some(first) = first else {
            return Err(not_supported(HOST, "a model without RoPE"));
        };
        if is_one {
            Ok(RotaryTables([(RotaryTable::Global, first)].into()))
        } else if is_one_by_window {
            Ok(RotaryTables(by_window))
        } else {
            Err(not_supported(HOST, "layers of different RoPE"))
        }
    }

    /// Each table, and the rotary embedding that it is of.
    pub fn iter(&self) -> impl Iterator<Item = (RotaryTable, &'a Rotary)> + '_ {
        self.0.iter().map(|(table, rotary)| (*table, *rotary))
    }

    /// The table of `layer`; `None` if it has no RoPE.
    pub fn of_layer(&self, layer: &Layer) -> Option<RotaryTable> {
        let rotary = layer.attention.rotary.as_ref()?;
        let (table, _) = self.iter().find(|(_, other)| *other == rotary)?;
        Some(table)
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
    /// The rotated columns of a head: of the layers of each table.
    global_dims: u64,
    local_dims: u64,
}

impl Shapes {
    /// The shapes for graphs of `spec` with `tokens` tokens in a `context`.
    pub fn new(spec: &DecoderSpec, tokens: u64, context: u64) -> Result<Self> {
        let (mut global_dims, mut local_dims) = (0, 0);
        for (table, rotary) in RotaryTables::of(spec)?.iter() {
            let Rotary {
                layout: _,
                dims,
                // The host computes the table from them.
                base: _,
                scaling: _,
                magnitude: _,
            } = rotary;
            match table {
                RotaryTable::Global => global_dims = (*dims).into(),
                RotaryTable::Local => local_dims = (*dims).into(),
            }
        }
        Ok(Shapes {
            tokens,
            context,
            hidden: spec.hidden.into(),
            kv_heads: spec.kv_heads.into(),
            head_dim: spec.head_dim.into(),
            global_dims,
            local_dims,
        })
    }

    /// The shape of `input`.
    pub fn of(&self, input: HostInput) -> Vec<u64> {
        let past = self.context.saturating_sub(self.tokens);
        match input {
            HostInput::TokenIds => vec![1, self.tokens],
            HostInput::Embeddings => vec![1, self.tokens, self.hidden],
            HostInput::Mask => vec![1, 1, self.tokens, self.context],
            HostInput::RotaryCos(table) | HostInput::RotarySin(table) => {
                let dims = match table {
                    RotaryTable::Global => self.global_dims,
                    RotaryTable::Local => self.local_dims,
                };
                vec![1, 1, self.tokens, dims / 2]
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
        for input in inputs(&spec, &Shard::whole(&spec)).unwrap() {
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
            let all = inputs(&spec, shard).unwrap();
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
    fn layers_with_a_window_may_have_a_table_of_their_own() {
        let mut spec = DecoderSpec::tiny();
        let local = &mut spec.layers[0].attention;
        local.window = Window::Sliding(16);
        local.rotary.as_mut().unwrap().base = 1e6;
        let tables = |shard: &Shard| {
            let mut names = vec![];
            for input in inputs(&spec, shard).unwrap() {
                if let HostInput::RotaryCos(_) = input {
                    names.push(input.name());
                }
            }
            names
        };
        let [global, local] = ["position_ids_cos", "swa_position_ids_cos"];
        assert_eq!(tables(&Shard::whole(&spec)), [global, local]);
        let shards = Shard::cut(&spec, 2, Place::default()).unwrap();
        assert_eq!(tables(&shards[0]), [local]);
        assert_eq!(tables(&shards[1]), [global]);
    }

    #[test]
    fn an_input_is_found_by_its_name() {
        let spec = DecoderSpec::tiny();
        let mut all = inputs(&spec, &Shard::whole(&spec)).unwrap();
        all.extend([
            HostInput::Embeddings,
            HostInput::RotaryCos(RotaryTable::Local),
            HostInput::RotarySin(RotaryTable::Local),
        ]);
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
    fn a_window_as_long_as_the_context_hides_nothing() {
        let name = |window| mask_name(short_window(window, 16));
        let names = [Window::Full, Window::Sliding(16), Window::Sliding(15)].map(name);
        assert_eq!(names, [MASK, MASK, "window_15.mask"]);
        for name in names {
            assert!(is_mask(&name));
        }
        assert!(!is_mask("window_15.mask.moved"));
        assert_eq!(in_window_mask("window_15.mask.moved"), Some(".moved"));
    }

    #[test]
    fn different_rotary_tables_are_not_supported() {
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
    }
}
