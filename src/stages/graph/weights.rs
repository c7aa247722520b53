//! The weights that a decoder needs, and whether they are all there.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{CanonJson, Digest, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::tensors::by_name;
use crate::model::facts::{Element, WeightFacts};
use crate::model::onnx::Spelling;

/// One blob of a weight.
#[derive(Clone, Debug)]
pub(super) struct WeightBlob {
    pub(super) facts: WeightFacts,
    pub(super) size_bytes: u64,
}

/// A weight: its blobs by what they are (`values`; `codes`, `scales`, `offsets`).
#[derive(Clone, Debug, Default)]
pub(super) struct Weight {
    pub(super) blobs: BTreeMap<String, WeightBlob>,
}

/// All weights of a model by their GGUF names.
#[derive(Default)]
pub(super) struct Weights {
    pub(super) by_name: BTreeMap<String, Weight>,
}

impl Weights {
    /// Sorts parts called `NAME/codes` ... by weight.
    pub(super) fn new<'a>(
        parts: impl Iterator<Item = (&'a str, &'a CanonJson, Digest)>,
    ) -> Result<Self> {
        let mut weights = Weights::default();
        for (part, facts, digest) in parts {
            let (name, blob) = part.rsplit_once('/').ok_or_else(|| {
                Problem::new(
                    "kiln::graph::weights",
                    format!(
                        "`{part}` is no part of a weight: expected `NAME/values`, `NAME/codes` ..."
                    ),
                )
            })?;
            let facts = facts.read().map_err(|problem| {
                problem.within(format!("failed to read the facts of `{part}`"))
            })?;
            let blob_of_weight = WeightBlob {
                facts,
                size_bytes: digest.size_bytes,
            };
            weights
                .by_name
                .entry(name.into())
                .or_default()
                .blobs
                .insert(blob.into(), blob_of_weight);
        }
        Ok(weights)
    }

    /// All that is missing, misshapen or not understood, in one problem.
    pub(super) fn check(&self, model: &DecoderSpec) -> Result<()> {
        let needed = by_name(model);
        let mut wrong: Vec<String> = vec![];
        for (name, tensor) in &needed {
            let shape = &tensor.shape;
            match self.by_name.get(name) {
                None => wrong.push(format!("`{name}` {shape:?} is missing")),
                Some(weight) => wrong.extend(
                    weight
                        .check(shape)
                        .err()
                        .map(|why| format!("`{name}`: {why}")),
                ),
            }
        }
        let unused = self
            .by_name
            .keys()
            .filter(|name| !needed.contains_key(*name));
        wrong.extend(unused.map(|name| {
            format!(
                "`{name}` has no place in a `{}` decoder",
                model.architecture
            )
        }));
        if wrong.is_empty() {
            return Ok(());
        }
        let count = wrong.len();
        Err(Problem::new(
            "kiln::graph::weights",
            format!(
                "{count} of the weights do not fit the model: {}",
                wrong.join("; ")
            ),
        )
        .help(
            "`model` and `weights` must come from the same file; `kiln inspect` shows what it \
             holds",
        ))
    }
}

impl Weight {
    fn check(&self, shape: &[u64]) -> std::result::Result<(), String> {
        let names: BTreeSet<&str> = self.blobs.keys().map(String::as_str).collect();
        let spells = |spelling: Spelling| {
            spelling
                .inputs()
                .iter()
                .copied()
                .collect::<BTreeSet<&str>>()
                == names
        };
        if !Spelling::ALL.into_iter().any(spells) {
            return Err(format!("{names:?} spell no weight"));
        }
        for (name, blob) in &self.blobs {
            let expected = self.blob_shape(name, shape)?;
            if blob.facts.shape != expected {
                return Err(format!(
                    "{name} have shape {:?}, expected {expected:?}",
                    blob.facts.shape
                ));
            }
            let fits = match blob.facts.element {
                Element::Int4 | Element::Uint4 | Element::Int8 => name == "codes",
                Element::Uint8 => name == "block_scales",
                Element::F32 | Element::F16 | Element::Bf16 => {
                    name != "codes" && name != "block_scales"
                }
            };
            if !fits {
                return Err(format!("{name} cannot be {:?}", blob.facts.element));
            }
            let bits = expected
                .iter()
                .try_fold(blob.facts.element.bits(), |bits, &n| bits.checked_mul(n));
            if bits.map(|bits| bits.div_ceil(8)) != Some(blob.size_bytes) {
                return Err(format!(
                    "{name} have {} bytes, which {expected:?} {:?} have not",
                    blob.size_bytes, blob.facts.element
                ));
            }
        }
        Ok(())
    }

    fn blob_shape(&self, blob: &str, shape: &[u64]) -> std::result::Result<Vec<u64>, String> {
        if blob == "values" {
            return Ok(shape.to_vec());
        }
        let &[rows, columns] = shape else {
            return Err("a vector cannot be in blocks".into());
        };
        let block = self.block().ok_or("the codes do not say their block")?;
        if block == 0 || columns % block != 0 {
            return Err(format!("{columns} columns are not whole blocks of {block}"));
        }
        Ok(match blob {
            "codes" => shape.to_vec(),
            "channel_scales" => vec![rows],
            _ => vec![rows, columns / block],
        })
    }

    /// How it is spelled. It has been checked.
    pub(super) fn spelling(&self) -> Spelling {
        let has = |blob: &str| self.blobs.contains_key(blob);
        if has("values") {
            Spelling::Values
        } else if has("block_scales") {
            Spelling::Lpbq
        } else if has("offsets") {
            Spelling::OffsetBlocks
        } else {
            Spelling::Blocks
        }
    }

    /// Columns that share a scale.
    pub(super) fn block(&self) -> Option<u64> {
        self.blobs
            .get("codes")
            .and_then(|codes| codes.facts.block)
            .map(u64::from)
    }
}
