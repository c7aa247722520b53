//! The serialized form of a decoder: the numbers of [`ModelFacts`], and a structure if the decoder
//! is not a plain one. Equal layers are written once.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::rotary::{RopeRows, Rotary};
use super::spec::{DecoderSpec, Embedding, Head, Layer, MAX_LAYERS, is_default};
use crate::base::{Code, Problem, Result};

/// A decoder-only transformer as facts. Code uses it as a [`DecoderSpec`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Name of the architecture in the model file: `llama`.
    pub architecture: String,
    /// Number of decoder layers.
    pub block_count: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Width of the feed-forward layer.
    pub ffn: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of one head.
    pub head_dim: u32,
    /// Rows of the embedding.
    pub vocab: u32,
    /// Longest context the model was trained for, in tokens.
    pub context_length: u32,
    /// The epsilon of RMSNorm.
    pub rms_epsilon: f32,
    /// The base of RoPE's frequencies.
    pub rope_freq_base: f32,
    /// RoPE layout of the rows of `attn_q` and `attn_k` in this file.
    pub rope_rows: RopeRows,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the head uses the matrix of the embedding.
    pub tied_embeddings: bool,
    /// Features that the other fields cannot express; `None` if the decoder has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<Structure>,
}

/// The parts of a decoder that [`ModelFacts`] has no numbers for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Structure {
    /// The embedding.
    #[serde(default, skip_serializing_if = "is_default")]
    pub embedding: Embedding,
    /// The distinct layers.
    pub kinds: Vec<Layer>,
    /// For each layer its index in `kinds`.
    pub layers: Vec<u32>,
    /// The head.
    pub head: Head,
}

impl Structure {
    fn of(spec: &DecoderSpec) -> Self {
        let mut kinds: Vec<Layer> = vec![];
        let mut layers = vec![];
        for layer in &spec.layers {
            match kinds.iter().position(|kind| kind == layer) {
                Some(index) => layers.push(index as u32),
                None => {
                    layers.push(kinds.len() as u32);
                    kinds.push(layer.clone());
                }
            }
        }
        Structure {
            embedding: spec.embedding.clone(),
            kinds,
            layers,
            head: spec.head.clone(),
        }
    }
}

/// The plain decoder with the numbers of `facts`.
fn plain(facts: &ModelFacts) -> DecoderSpec {
    let rotary = Rotary::plain(facts.rope_rows, facts.head_dim, facts.rope_freq_base);
    DecoderSpec {
        architecture: facts.architecture.clone(),
        context_length: facts.context_length,
        vocab: facts.vocab,
        hidden: facts.hidden,
        ffn: facts.ffn,
        heads: facts.heads,
        kv_heads: facts.kv_heads,
        head_dim: facts.head_dim,
        rms_epsilon: facts.rms_epsilon,
        embedding: Embedding::default(),
        layers: vec![Layer::plain(rotary, facts.qkv_bias); facts.block_count as usize],
        head: Head {
            tied: facts.tied_embeddings,
            scale: None,
            soft_cap: None,
        },
    }
}

impl From<DecoderSpec> for ModelFacts {
    fn from(spec: DecoderSpec) -> Self {
        let (mut rope_freq_base, mut rope_rows) = (0.0, RopeRows::HalfSplit);
        for layer in &spec.layers {
            if let Some(rotary) = &layer.attention.rotary {
                (rope_freq_base, rope_rows) = (rotary.base, rotary.layout);
                break;
            }
        }
        let mut facts = ModelFacts {
            architecture: spec.architecture.clone(),
            block_count: spec.block_count(),
            hidden: spec.hidden,
            ffn: spec.ffn,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            vocab: spec.vocab,
            context_length: spec.context_length,
            rms_epsilon: spec.rms_epsilon,
            rope_freq_base,
            rope_rows,
            qkv_bias: spec.has_qkv_bias(),
            tied_embeddings: spec.head.tied,
            structure: None,
        };
        if plain(&facts) != spec {
            facts.structure = Some(Structure::of(&spec));
        }
        facts
    }
}

impl TryFrom<ModelFacts> for DecoderSpec {
    type Error = Problem;

    /// A problem if the numbers do not describe a decoder.
    fn try_from(facts: ModelFacts) -> Result<Self> {
        if facts.block_count > MAX_LAYERS {
            return Err(invalid(format!(
                "{} layers are too many: at most {MAX_LAYERS}",
                facts.block_count
            )));
        }
        let counts = [
            facts.block_count,
            facts.hidden,
            facts.ffn,
            facts.heads,
            facts.kv_heads,
            facts.head_dim,
            facts.vocab,
        ];
        if counts.contains(&0)
            || !facts.heads.is_multiple_of(facts.kv_heads)
            || !facts.head_dim.is_multiple_of(2)
        {
            return Err(invalid(
                "layers, widths and heads must be at least 1, heads a multiple of key heads, head \
                 width even",
            ));
        }
        let mut spec = plain(&facts);
        let Some(Structure {
            embedding,
            kinds,
            layers,
            head,
        }) = facts.structure
        else {
            return Ok(spec);
        };
        if layers.len() != spec.layers.len() {
            return Err(invalid(format!(
                "the structure has {} layers, the model {}",
                layers.len(),
                spec.layers.len()
            )));
        }
        for (index, kind) in layers.into_iter().enumerate() {
            let Some(layer) = kinds.get(kind as usize) else {
                return Err(invalid(format!("there is no layer of kind {kind}")));
            };
            if let Some(rotary) = &layer.attention.rotary {
                let dims = rotary.dims;
                if dims == 0 || !dims.is_multiple_of(2) || dims > spec.head_dim {
                    return Err(invalid(format!(
                        "RoPE of {dims} of {} columns: their number must be even and at least 2",
                        spec.head_dim
                    )));
                }
                for context in [0, u32::MAX] {
                    let divisors = rotary.divisors(context).len();
                    if divisors != dims as usize / 2 {
                        return Err(invalid(format!(
                            "RoPE of {dims} columns has {divisors} divisors"
                        )));
                    }
                }
            }
            spec.layers[index] = layer.clone();
        }
        Ok(DecoderSpec {
            embedding,
            head,
            ..spec
        })
    }
}

impl Serialize for DecoderSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        ModelFacts::from(self.clone()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DecoderSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let facts = ModelFacts::deserialize(deserializer)?;
        DecoderSpec::try_from(facts).map_err(D::Error::custom)
    }
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new(Code::ModelFacts, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::CanonJson;
    use crate::model::decoder::Window;

    #[test]
    fn a_plain_decoder_is_written_as_its_numbers() {
        assert_eq!(
            CanonJson::of(&DecoderSpec::tiny()).unwrap().to_string(),
            r#"{"architecture":"tiny","block_count":2,"context_length":64,"ffn":12,"head_dim":4,"heads":2,"hidden":8,"kv_heads":1,"qkv_bias":false,"rms_epsilon":0.0625,"rope_freq_base":10000.0,"rope_rows":"half-split","tied_embeddings":true,"vocab":10}"#
        );
    }

    #[test]
    fn decoders_round_trip_through_facts() {
        let mut specs = DecoderSpec::variants();
        specs.push(("nothing", DecoderSpec::tiny()));
        for (part, spec) in specs {
            let facts = CanonJson::of(&spec).unwrap();
            assert_eq!(facts.read::<DecoderSpec>().unwrap(), spec, "{part}");
            assert_eq!(facts.get("structure").is_some(), part != "nothing");
        }
    }

    #[test]
    fn equal_layers_are_written_once() {
        let mut spec = DecoderSpec::tiny();
        let full = spec.layers[0].clone();
        let mut local = full.clone();
        local.attention.window = Window::Sliding(512);
        local.attention.rotary.as_mut().unwrap().base = 1e6;
        spec.layers = [[local.clone(), full.clone()], [local, full]].concat();
        let facts = CanonJson::of(&spec).unwrap();
        assert_eq!(
            facts.get("structure").unwrap().to_string(),
            r#"{"head":{"tied":true},"kinds":[{"attention":{"rotary":{"base":1000000.0,"dims":4,"layout":"half-split"},"window":{"sliding":512}}},{"attention":{"rotary":{"base":10000.0,"dims":4,"layout":"half-split"}}}],"layers":[0,1,0,1]}"#
        );
        assert_eq!(facts.read::<DecoderSpec>().unwrap(), spec);
    }

    #[test]
    fn invalid_facts_are_rejected() {
        let check = |change: fn(&mut ModelFacts), expected: &str| {
            let mut spec = DecoderSpec::tiny();
            spec.layers[1].attention.rotary = None;
            let mut facts = ModelFacts::from(spec);
            change(&mut facts);
            let problem = DecoderSpec::try_from(facts).unwrap_err();
            assert!(problem.message.contains(expected), "{problem}");
        };
        check(|facts| facts.block_count = 513, "at most 512");
        check(|facts| facts.kv_heads = 0, "at least 1");
        check(|facts| facts.kv_heads = 3, "heads a multiple of key heads");
        check(|facts| facts.head_dim = 5, "head width even");
        check(
            |facts| facts.block_count = 3,
            "the structure has 2 layers, the model 3",
        );
        check(
            |facts| facts.structure.as_mut().unwrap().layers[1] = 2,
            "no layer of kind 2",
        );
        check(
            |facts| {
                let kind = &mut facts.structure.as_mut().unwrap().kinds[0];
                kind.attention.rotary.as_mut().unwrap().dims = 6;
            },
            "RoPE of 6 of 4 columns",
        );
    }
}
