//! A candidate as a decoder: token ids in, logits out, with the KV cache, mask and rotary tables
//! that Genie's graphs want from their host (`docs/artifacts.md`).

use std::collections::BTreeMap;

use crate::base::{Code, Problem, Result};
use crate::model::decoder::inputs::{self, HostInput, LOGITS, Shapes};
use crate::model::decoder::{DecoderSpec, Rotary};
use crate::model::facts::GraphFacts;
use crate::model::shards::Shard;

/// What a masked position adds to its score: far below any real one, and fp16 holds it.
const MASKED: f32 = -1000.0;

/// The two graphs of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graph {
    /// Many tokens at once.
    Prefill,
    /// One token after a cache.
    Decode,
}

impl Graph {
    /// As a plan calls it.
    pub fn role(self) -> &'static str {
        match self {
            Graph::Prefill => "prefill",
            Graph::Decode => "decode",
        }
    }
}

/// A value for a graph's input; row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// Token ids.
    I32(Vec<usize>, Vec<i32>),
    /// Everything else; an engine converts it to the graph's own type.
    F32(Vec<usize>, Vec<f32>),
}

/// Whatever runs a candidate's graphs.
pub trait Engine {
    /// How many tokens `graph` takes, in what context.
    fn facts(&self, graph: Graph) -> Result<GraphFacts>;

    /// Runs `graph` on `inputs` and gives the values of the outputs called `wanted`.
    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>>;
}

/// A candidate's graphs and what their host must know of the model.
pub struct Decoder {
    /// What runs the graphs.
    pub engine: Box<dyn Engine>,
    /// The model they were made of.
    pub model: DecoderSpec,
}

/// Keys and values so far, one entry a token: `[layer][token]`, each `kv_heads * head_dim` values.
pub struct Cache {
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
}

impl Cache {
    /// How many tokens it holds.
    pub fn tokens(&self) -> usize {
        self.keys.first().map_or(0, Vec::len)
    }

    /// Forgets all but the first `count` tokens: attention is causal, so those do not know the
    /// others.
    pub fn truncate(&mut self, count: usize) {
        self.keys
            .iter_mut()
            .chain(&mut self.values)
            .for_each(|layer| layer.truncate(count));
    }
}

impl Decoder {
    /// The logits after each of `tokens`, `[tokens, vocab]`, and the cache that a step continues;
    /// nothing comes before them.
    pub fn start(&mut self, tokens: &[u32]) -> Result<(Vec<f32>, Cache)> {
        let layers = self.model.layers.len();
        let mut cache = Cache {
            keys: vec![vec![]; layers],
            values: vec![vec![]; layers],
        };
        let graph = self.engine.facts(Graph::Prefill)?;
        let inputs = feeds(&self.model, &graph, tokens, &cache)?;
        let mut outputs = self
            .engine
            .run(Graph::Prefill, &inputs, &self.all_outputs())?;
        let (width, vocab) = (graph.tokens as usize, self.model.vocab as usize);
        let mut logits = taken(&mut outputs, LOGITS, width * vocab)?;
        logits.truncate(tokens.len() * vocab);
        self.append(&mut cache, &mut outputs, width, tokens.len())?;
        Ok((logits, cache))
    }

    /// The logits after `token`, which follows what `cache` holds and joins it.
    pub fn step(&mut self, token: u32, cache: &mut Cache) -> Result<Vec<f32>> {
        let inputs = feeds(
            &self.model,
            &self.engine.facts(Graph::Decode)?,
            &[token],
            cache,
        )?;
        let mut outputs = self
            .engine
            .run(Graph::Decode, &inputs, &self.all_outputs())?;
        let logits = taken(&mut outputs, LOGITS, self.model.vocab as usize)?;
        self.append(cache, &mut outputs, 1, 1)?;
        Ok(logits)
    }

    fn all_outputs(&self) -> Vec<String> {
        let mut outputs = inputs::cache_outputs(&Shard::whole(&self.model));
        outputs.push(LOGITS.into());
        outputs
    }

    /// Takes the first `count` of `width` new keys and values out of `outputs`.
    fn append(
        &self,
        cache: &mut Cache,
        outputs: &mut BTreeMap<String, Vec<f32>>,
        width: usize,
        count: usize,
    ) -> Result<()> {
        let dim = self.model.head_dim as usize;
        let size = self.model.kv_heads as usize * dim * width;
        for (layer, (keys, values)) in (0..).zip(cache.keys.iter_mut().zip(&mut cache.values)) {
            let key = taken(outputs, &inputs::Cache::Key.output(layer), size)?;
            let value = taken(outputs, &inputs::Cache::Value.output(layer), size)?;
            for token in 0..count {
                keys.push(key.iter().skip(token).step_by(width).copied().collect());
                let rows = value
                    .chunks_exact(width * dim)
                    .flat_map(|head| head.iter().skip(token * dim).take(dim));
                values.push(rows.copied().collect());
            }
        }
        Ok(())
    }
}

/// The inputs of a call of `graph` on `tokens`, padded at the end; nothing comes before them.
pub fn opening(
    model: &DecoderSpec,
    graph: &GraphFacts,
    tokens: &[u32],
) -> Result<BTreeMap<String, Tensor>> {
    feeds(
        model,
        graph,
        tokens,
        &Cache {
            keys: vec![],
            values: vec![],
        },
    )
}

/// The inputs of a call of `graph` on `tokens`, padded at the end, after what `cache` holds.
fn feeds(
    model: &DecoderSpec,
    graph: &GraphFacts,
    tokens: &[u32],
    cache: &Cache,
) -> Result<BTreeMap<String, Tensor>> {
    let (width, context) = (graph.tokens as usize, graph.context as usize);
    let past = context
        .checked_sub(width)
        .filter(|past| tokens.len() <= width && cache.tokens() <= *past);
    let past = past.ok_or_else(|| {
        Problem::new(
            Code::EvaluateGraphTooSmall,
            format!(
                "{} tokens after {} do not fit the graph `{}`, which takes {width} in a context \
                 of {context}",
                tokens.len(),
                cache.tokens(),
                graph.name
            ),
        )
        .help("lower `tokens` (or the prompt) of the `reference` stage, or build larger graphs")
    })?;
    let shapes = Shapes::new(model, graph.tokens.into(), graph.context.into())?;
    let (cos, sin) = cosines_and_sines(inputs::rotary(model)?, cache.tokens(), width);
    let mut feeds = BTreeMap::new();
    for input in inputs::inputs(&Shard::whole(model)) {
        let shape: Vec<usize> = shapes.of(input).iter().map(|n| *n as usize).collect();
        let tensor = match input {
            HostInput::TokenIds => {
                let mut ids: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
                ids.resize(width, 0);
                Tensor::I32(shape, ids)
            }
            // Another graph gives them.
            HostInput::Embeddings => continue,
            HostInput::Mask => Tensor::F32(shape, mask(width, past, cache.tokens())),
            HostInput::RotaryCos => Tensor::F32(shape, cos.clone()),
            HostInput::RotarySin => Tensor::F32(shape, sin.clone()),
            HostInput::Past(..) if past == 0 => continue,
            HostInput::Past(inputs::Cache::Key, layer) => {
                let held = cache
                    .keys
                    .get(layer as usize)
                    .map_or(&[][..], Vec::as_slice);
                Tensor::F32(shape, past_keys(model, past, held))
            }
            HostInput::Past(inputs::Cache::Value, layer) => {
                let held = cache
                    .values
                    .get(layer as usize)
                    .map_or(&[][..], Vec::as_slice);
                Tensor::F32(shape, past_values(model, past, held))
            }
        };
        feeds.insert(input.name(), tensor);
    }
    Ok(feeds)
}

/// `[kv_heads, 1, head_dim, past]`: the keys `held` of each token in a column of its own.
fn past_keys(model: &DecoderSpec, past: usize, held: &[Vec<f32>]) -> Vec<f32> {
    let mut keys = vec![0.0; model.kv_heads as usize * model.head_dim as usize * past];
    for (column, token) in held.iter().enumerate() {
        let rows = keys.iter_mut().skip(column).step_by(past);
        rows.zip(token).for_each(|(to, from)| *to = *from);
    }
    keys
}

/// `[kv_heads, 1, past, head_dim]`: the values `held` of each token in a row of its own.
fn past_values(model: &DecoderSpec, past: usize, held: &[Vec<f32>]) -> Vec<f32> {
    let dim = model.head_dim as usize;
    let mut values = vec![0.0; model.kv_heads as usize * dim * past];
    for (row, token) in held.iter().enumerate() {
        let heads = values.chunks_exact_mut(past * dim);
        for (head, from) in heads.zip(token.chunks_exact(dim)) {
            let columns = head.iter_mut().skip(row * dim);
            columns.zip(from).for_each(|(to, from)| *to = *from);
        }
    }
    values
}

/// `[width, past + width]`: each token sees the cache's `held` columns, those before it, and
/// itself.
fn mask(width: usize, past: usize, held: usize) -> Vec<f32> {
    let sees = |row: usize, column: usize| column < held || (past..=past + row).contains(&column);
    (0..width)
        .flat_map(|row| {
            (0..past + width).map(move |column| if sees(row, column) { 0.0 } else { MASKED })
        })
        .collect()
}

/// Cosines and sines of `position * base^(-2i / dims)`, `[width, dims / 2]`, from position `first`
/// on.
fn cosines_and_sines(rotary: &Rotary, first: usize, width: usize) -> (Vec<f32>, Vec<f32>) {
    let Rotary {
        // The graph knows which columns turn together.
        layout: _,
        dims,
        base,
    } = rotary;
    let (base, columns) = (f64::from(*base), f64::from(*dims));
    let angles = (first..first + width).flat_map(|position| {
        (0..dims / 2).map(move |i| position as f64 * base.powf(-2.0 * f64::from(i) / columns))
    });
    angles
        .map(|angle| (angle.cos() as f32, angle.sin() as f32))
        .unzip()
}

fn taken(outputs: &mut BTreeMap<String, Vec<f32>>, name: &str, size: usize) -> Result<Vec<f32>> {
    let values = outputs.remove(name).unwrap_or_default();
    if values.len() != size {
        return Err(Problem::new(
            Code::EvaluateOutput,
            format!(
                "the candidate's output `{name}` has {} values, expected {size}",
                values.len()
            ),
        ));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model of one layer, two heads of two: a token's key and value are its id, and the "logit"
    /// of token v is the number of seen tokens with id v. Whatever is fed wrongly shows in the
    /// counts.
    struct Counting;

    const VOCAB: usize = 10;

    fn floats<'a>(inputs: &'a BTreeMap<String, Tensor>, name: &str) -> &'a [f32] {
        match &inputs[name] {
            Tensor::F32(_, values) => values,
            Tensor::I32(..) => panic!("{name} is no float"),
        }
    }

    impl Engine for Counting {
        fn facts(&self, graph: Graph) -> Result<GraphFacts> {
            let tokens = if graph == Graph::Prefill { 4 } else { 1 };
            Ok(GraphFacts {
                name: format!("ar{tokens}"),
                tokens,
                context: 8,
                shard: None,
                weights: vec![],
            })
        }

        fn run(
            &mut self,
            _: Graph,
            inputs: &BTreeMap<String, Tensor>,
            _: &[String],
        ) -> Result<BTreeMap<String, Vec<f32>>> {
            let Tensor::I32(_, ids) = &inputs["input_ids"] else {
                panic!()
            };
            let width = ids.len();
            let (mask, keys, values) = (
                floats(inputs, "attention_mask"),
                floats(inputs, "past_key_0_in"),
                floats(inputs, "past_value_0_in"),
            );
            let (past, context) = (keys.len() / 4, mask.len() / width);
            let mut logits = vec![0.0; width * VOCAB];
            for row in 0..width {
                for column in (0..context).filter(|column| mask[row * context + column] == 0.0) {
                    // Head 1, second value of the head: key [2, 1, 2, past], value [2, 1, past, 2].
                    let id = if column < past {
                        keys[3 * past + column]
                    } else {
                        ids[column - past] as f32
                    };
                    if column < past {
                        assert_eq!(id, values[2 * past + 2 * column + 1]);
                    }
                    logits[row * VOCAB + id as usize] += 1.0;
                }
            }
            let repeat = |inner: usize, outer: usize| -> Vec<f32> {
                let once = ids.iter().flat_map(|id| vec![*id as f32; inner]);
                once.collect::<Vec<_>>().repeat(outer)
            };
            Ok([
                ("logits", logits),
                ("past_key_0_out", repeat(1, 4)),
                ("past_value_0_out", repeat(2, 2)),
            ]
            .map(|(name, values)| (name.to_string(), values))
            .into())
        }
    }

    fn decoder() -> Decoder {
        let mut model = DecoderSpec {
            kv_heads: 2,
            head_dim: 2,
            vocab: VOCAB as u32,
            ..DecoderSpec::tiny()
        };
        model.layers.truncate(1);
        model.layers[0].attention.rotary.as_mut().unwrap().dims = 2;
        Decoder {
            engine: Box::new(Counting),
            model,
        }
    }

    #[test]
    fn a_token_sees_itself_and_what_came_before() {
        let (logits, _) = decoder().start(&[3, 5, 3]).unwrap();
        assert_eq!(logits.len(), 3 * VOCAB);
        assert_eq!(&logits[..VOCAB], [0., 0., 0., 1., 0., 0., 0., 0., 0., 0.]);
        assert_eq!(
            &logits[2 * VOCAB..],
            [0., 0., 0., 2., 0., 1., 0., 0., 0., 0.]
        );
    }

    #[test]
    fn steps_continue_a_prefill() {
        let mut decoder = decoder();
        let (_, mut cache) = decoder.start(&[3, 5, 9]).unwrap();
        cache.truncate(2);
        assert_eq!(
            decoder.step(3, &mut cache).unwrap(),
            [0., 0., 0., 2., 0., 1., 0., 0., 0., 0.]
        );
        assert_eq!(
            decoder.step(7, &mut cache).unwrap(),
            [0., 0., 0., 2., 0., 1., 0., 1., 0., 0.]
        );
        assert_eq!(cache.tokens(), 4);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let problem = decoder().start(&[1; 5]).err().unwrap();
        assert!(
            problem
                .message
                .contains("5 tokens after 0 do not fit the graph `ar4`"),
            "{problem}"
        );
    }

    #[test]
    fn angles_follow_the_position() {
        let model = DecoderSpec::tiny();
        let (cos, sin) = cosines_and_sines(inputs::rotary(&model).unwrap(), 2, 1);
        assert_eq!(cos, [2f64.cos() as f32, 0.02f64.cos() as f32]);
        assert_eq!(sin, [2f64.sin() as f32, 0.02f64.sin() as f32]);
    }
}
