//! A candidate as a decoder: token ids in, logits out. It fills the KV cache, mask and rotary
//! tables that Genie's graphs expect from their host (`docs/artifacts.md`).

use std::collections::BTreeMap;

use crate::base::{Code, Problem, Result};
use crate::model::decoder::inputs::{self, HostInput, LOGITS, MASKED, RotaryTables, Shapes};
use crate::model::decoder::shards::Shard;
use crate::model::decoder::{DecoderSpec, Rotary};
use crate::model::facts::GraphFacts;

/// The two graphs of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graph {
    /// Many tokens at once.
    Prefill,
    /// One token after a cache.
    Decode,
}

impl Graph {
    /// Its name in a plan.
    pub fn role(self) -> &'static str {
        match self {
            Graph::Prefill => "prefill",
            Graph::Decode => "decode",
        }
    }
}

/// A value for a graph's input: shape and row-major elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// Token ids.
    I32(Vec<usize>, Vec<i32>),
    /// Everything else; an engine converts it to the graph's own type.
    F32(Vec<usize>, Vec<f32>),
}

/// Something that runs a candidate's graphs.
pub trait Engine {
    /// Name, tokens and context of `graph`.
    fn facts(&self, graph: Graph) -> Result<GraphFacts>;

    /// Runs `graph` on `inputs` and returns the values of the named `outputs`.
    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        outputs: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>>;
}

/// A candidate's graphs, and the model whose host inputs they take.
pub struct Decoder {
    /// What runs the graphs.
    pub engine: Box<dyn Engine>,
    /// The model that they were made from.
    pub model: DecoderSpec,
}

/// Keys and values so far: `[layer][token]`, each of `kv_heads * head_dim` numbers.
pub struct Cache {
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
}

impl Cache {
    fn empty(layers: usize) -> Self {
        Cache {
            keys: vec![vec![]; layers],
            values: vec![vec![]; layers],
        }
    }

    /// The number of tokens in it.
    pub fn tokens(&self) -> usize {
        match self.keys.first() {
            Some(layer) => layer.len(),
            None => 0,
        }
    }

    /// Removes all but the first `count` tokens. Attention is causal, so the entries of these do
    /// not depend on the removed ones.
    pub fn truncate(&mut self, count: usize) {
        for layer in &mut self.keys {
            layer.truncate(count);
        }
        for layer in &mut self.values {
            layer.truncate(count);
        }
    }
}

impl Decoder {
    /// Runs `tokens` from an empty cache, in as many calls as they need. Returns the logits after
    /// each of them, `[tokens, vocab]`, and the cache that a step continues.
    pub fn start(&mut self, tokens: &[u32]) -> Result<(Vec<f32>, Cache)> {
        let mut cache = Cache::empty(self.model.layers.len());
        let width = self.engine.facts(Graph::Prefill)?.tokens.max(1);
        let mut logits = vec![];
        for tokens in tokens.chunks(width as usize) {
            logits.extend(self.call(Graph::Prefill, tokens, &mut cache)?);
        }
        Ok((logits, cache))
    }

    /// Runs `token` after the tokens of `cache`, and adds it to the cache. Returns its logits.
    pub fn step(&mut self, token: u32, cache: &mut Cache) -> Result<Vec<f32>> {
        self.call(Graph::Decode, &[token], cache)
    }

    /// Runs `graph` on `tokens` after the tokens of `cache`, and adds them to the cache. Returns the
    /// logits after each of them.
    fn call(&mut self, graph: Graph, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let facts = self.engine.facts(graph)?;
        let inputs = host_inputs(&self.model, &facts, tokens, cache)?;
        let mut names = inputs::cache_outputs(&Shard::whole(&self.model));
        names.push(LOGITS.into());
        let mut outputs = self.engine.run(graph, &inputs, &names)?;
        let (width, vocab) = (facts.tokens as usize, self.model.vocab as usize);
        let mut logits = remove_output(&mut outputs, LOGITS, width * vocab)?;
        logits.truncate(tokens.len() * vocab);
        self.append(cache, &mut outputs, width, tokens.len())?;
        Ok(logits)
    }

    /// Adds the first `count` of the `width` new keys and values in `outputs` to `cache`. Keys are
    /// `[kv_heads, 1, head_dim, width]`, values `[kv_heads, 1, width, head_dim]`.
    fn append(
        &self,
        cache: &mut Cache,
        outputs: &mut BTreeMap<String, Vec<f32>>,
        width: usize,
        count: usize,
    ) -> Result<()> {
        let dim = self.model.head_dim as usize;
        let size = self.model.kv_heads as usize * dim * width;
        for layer in 0..self.model.block_count() {
            let at = layer as usize;
            let keys = remove_output(outputs, &inputs::Cache::Key.output(layer), size)?;
            let values = remove_output(outputs, &inputs::Cache::Value.output(layer), size)?;
            for token in 0..count {
                let key = keys.iter().skip(token).step_by(width).copied().collect();
                cache.keys[at].push(key);
                let mut value = vec![];
                for head in values.chunks_exact(width * dim) {
                    value.extend_from_slice(&head[token * dim..][..dim]);
                }
                cache.values[at].push(value);
            }
        }
        Ok(())
    }
}

/// The inputs of the first call of `graph` on `tokens`, which takes as many of them as fit.
pub fn first_inputs(
    model: &DecoderSpec,
    graph: &GraphFacts,
    tokens: &[u32],
) -> Result<BTreeMap<String, Tensor>> {
    let tokens = &tokens[..tokens.len().min(graph.tokens as usize)];
    host_inputs(model, graph, tokens, &Cache::empty(model.layers.len()))
}

/// The inputs of a call of `graph` on `tokens` after the tokens of `cache`. The tokens are padded
/// at the end.
fn host_inputs(
    model: &DecoderSpec,
    graph: &GraphFacts,
    tokens: &[u32],
    cache: &Cache,
) -> Result<BTreeMap<String, Tensor>> {
    let (width, context) = (graph.tokens as usize, graph.context as usize);
    let past = context.saturating_sub(width);
    if width > context || tokens.len() > width || cache.tokens() > past {
        return Err(Problem::new(
            Code::EvaluateGraphTooSmall,
            format!(
                "{} tokens after {} do not fit the graph `{}`, which takes {width} in a context \
                 of {context}",
                tokens.len(),
                cache.tokens(),
                graph.name
            ),
        )
        .help("lower `tokens` (or the prompt) of the `reference` stage, or build larger graphs"));
    }
    let shapes = Shapes::new(model, graph.tokens.into(), graph.context.into())?;
    let mut angles = BTreeMap::new();
    for (table, rotary) in RotaryTables::of(model)?.iter() {
        let values = cosines_and_sines(rotary, graph.context, cache.tokens(), width);
        angles.insert(table, values);
    }
    let mut tensors = BTreeMap::new();
    for input in inputs::inputs(model, &Shard::whole(model))? {
        let shape: Vec<usize> = shapes.of(input).iter().map(|n| *n as usize).collect();
        let tensor = match input {
            HostInput::TokenIds => {
                let mut ids: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
                ids.resize(width, 0);
                Tensor::I32(shape, ids)
            }
            // The graph of the embedding computes them.
            HostInput::Embeddings => continue,
            HostInput::Mask => Tensor::F32(shape, mask(width, past, cache.tokens())),
            HostInput::RotaryCos(table) => Tensor::F32(shape, angles[&table].0.clone()),
            HostInput::RotarySin(table) => Tensor::F32(shape, angles[&table].1.clone()),
            HostInput::Past(..) if past == 0 => continue,
            HostInput::Past(inputs::Cache::Key, layer) => {
                let keys = &cache.keys[layer as usize];
                Tensor::F32(shape, past_keys(model, past, keys))
            }
            HostInput::Past(inputs::Cache::Value, layer) => {
                let values = &cache.values[layer as usize];
                Tensor::F32(shape, past_values(model, past, values))
            }
        };
        tensors.insert(input.name(), tensor);
    }
    Ok(tensors)
}

/// `[kv_heads, 1, head_dim, past]`: the key of each of `tokens` is a column.
fn past_keys(model: &DecoderSpec, past: usize, tokens: &[Vec<f32>]) -> Vec<f32> {
    let mut keys = vec![0.0; model.kv_heads as usize * model.head_dim as usize * past];
    for (column, key) in tokens.iter().enumerate() {
        for (row, element) in key.iter().enumerate() {
            keys[row * past + column] = *element;
        }
    }
    keys
}

/// `[kv_heads, 1, past, head_dim]`: the value of each of `tokens` is a row.
fn past_values(model: &DecoderSpec, past: usize, tokens: &[Vec<f32>]) -> Vec<f32> {
    let dim = model.head_dim as usize;
    let mut values = vec![0.0; model.kv_heads as usize * dim * past];
    for (row, value) in tokens.iter().enumerate() {
        for (head, elements) in value.chunks_exact(dim).enumerate() {
            values[(head * past + row) * dim..][..dim].copy_from_slice(elements);
        }
    }
    values
}

/// `[width, past + width]`: each token attends to the first `cached` columns, to the tokens before
/// it, and to itself.
fn mask(width: usize, past: usize, cached: usize) -> Vec<f32> {
    let mut mask = Vec::with_capacity(width * (past + width));
    for row in 0..width {
        for column in 0..past + width {
            let is_visible = column < cached || (past..=past + row).contains(&column);
            mask.push(if is_visible { 0.0 } else { MASKED });
        }
    }
    mask
}

/// Cosines and sines of `position * base^(-2i / dims) / divisor_i` times the magnitude, `[width, dims
/// / 2]`, from position `first` on, for graphs of this `context`.
fn cosines_and_sines(
    rotary: &Rotary,
    context: u32,
    first: usize,
    width: usize,
) -> (Vec<f32>, Vec<f32>) {
    let Rotary {
        // The graph has the pairs of columns that rotate together.
        layout: _,
        dims,
        base,
        // It is in the divisors.
        scaling: _,
        magnitude,
    } = rotary;
    let (base, columns) = (f64::from(*base), f64::from(*dims));
    let magnitude = f64::from(magnitude.unwrap_or(1.0));
    let divisors = rotary.divisors(context);
    let (mut cosines, mut sines) = (vec![], vec![]);
    for position in first..first + width {
        for (i, divisor) in divisors.iter().enumerate() {
            let angle = position as f64 * base.powf(-2.0 * i as f64 / columns) / divisor;
            cosines.push((angle.cos() * magnitude) as f32);
            sines.push((angle.sin() * magnitude) as f32);
        }
    }
    (cosines, sines)
}

/// Removes the output `name`, which must have `size` values.
fn remove_output(
    outputs: &mut BTreeMap<String, Vec<f32>>,
    name: &str,
    size: usize,
) -> Result<Vec<f32>> {
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
    /// of token v is the number of visible tokens with id v. A wrong input changes the counts.
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
                for column in 0..context {
                    if mask[row * context + column] != 0.0 {
                        continue;
                    }
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
            let key_row: Vec<f32> = ids.iter().map(|id| *id as f32).collect();
            let mut value_head = vec![];
            for id in &key_row {
                value_head.extend([*id; 2]);
            }
            Ok(BTreeMap::from([
                ("logits".to_string(), logits),
                ("past_key_0_out".to_string(), key_row.repeat(4)),
                ("past_value_0_out".to_string(), value_head.repeat(2)),
            ]))
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
    fn a_token_attends_to_itself_and_to_earlier_tokens() {
        let (logits, _) = decoder().start(&[3, 5, 3]).unwrap();
        assert_eq!(logits.len(), 3 * VOCAB);
        assert_eq!(&logits[..VOCAB], [0., 0., 0., 1., 0., 0., 0., 0., 0., 0.]);
        assert_eq!(
            &logits[2 * VOCAB..],
            [0., 0., 0., 2., 0., 1., 0., 0., 0., 0.]
        );
    }

    #[test]
    fn tokens_may_need_several_prefills() {
        let (logits, cache) = decoder().start(&[3, 5, 3, 9, 5, 3]).unwrap();
        assert_eq!(logits.len(), 6 * VOCAB);
        assert_eq!(
            &logits[5 * VOCAB..],
            [0., 0., 0., 3., 0., 2., 0., 0., 0., 1.]
        );
        assert_eq!(cache.tokens(), 6);
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
    fn tokens_that_do_not_fit_are_refused() {
        let problem = decoder().start(&[1; 9]).err().unwrap();
        let expected = "1 tokens after 8 do not fit the graph `ar4`";
        assert!(problem.message.contains(expected), "{problem}");
    }

    #[test]
    fn angles_follow_the_position() {
        let model = DecoderSpec::tiny();
        let rotary = model.layers[0].attention.rotary.as_ref().unwrap();
        let (cos, sin) = cosines_and_sines(rotary, 64, 2, 1);
        assert_eq!(cos, [2f64.cos() as f32, 0.02f64.cos() as f32]);
        assert_eq!(sin, [2f64.sin() as f32, 0.02f64.sin() as f32]);
    }
}
