//! Assembles the weights of a model from their parts.

use std::collections::BTreeMap;

use super::{ErrorFacts, WeightEncoding, WeightFacts, WeightPart};
use crate::base::{CanonJson, Code, Digest, Problem, Result};

/// A weight that has all parts of its encoding.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredWeight {
    /// `[rows, columns]` or `[n]`.
    pub shape: Vec<u64>,
    /// How it is stored.
    pub encoding: WeightEncoding,
    /// Its error compared with its source tensor.
    pub error: Option<ErrorFacts>,
    /// Length of each of its blobs.
    pub sizes: BTreeMap<WeightPart, u64>,
}

impl StoredWeight {
    /// Length of all its blobs.
    pub fn size_bytes(&self) -> u64 {
        let mut total = 0u64;
        for &size in self.sizes.values() {
            total = total.saturating_add(size);
        }
        total
    }
}

/// A weight, or the reason why its parts are not a weight.
pub type Stored = std::result::Result<StoredWeight, String>;

/// The parts of one weight, by the last segment of their names.
type Parts<'a> = BTreeMap<&'a str, (WeightFacts, u64)>;

/// Assembles the weights, by name, from parts that are called `NAME/codes` and so on.
pub fn stored<'a>(
    parts: impl Iterator<Item = (&'a str, &'a CanonJson, Digest)>,
) -> Result<BTreeMap<String, Stored>> {
    let mut by_weight: BTreeMap<&str, Parts> = BTreeMap::new();
    for (name, facts, digest) in parts {
        let Some((weight, part)) = name.rsplit_once('/') else {
            return Err(Problem::new(
                Code::WeightsPart,
                format!("`{name}` is no part of a weight: expected `NAME/codes` or the like"),
            ));
        };
        let facts = facts
            .read()
            .map_err(|problem| problem.within(format!("failed to read the facts of `{name}`")))?;
        by_weight
            .entry(weight)
            .or_default()
            .insert(part, (facts, digest.size_bytes));
    }
    let mut weights = BTreeMap::new();
    for (name, parts) in by_weight {
        weights.insert(name.to_string(), assemble(&parts));
    }
    Ok(weights)
}

fn assemble(parts: &Parts) -> Stored {
    let Some((first, _)) = parts.values().next() else {
        return Err("it has no parts".into());
    };
    let (encoding, shape) = (first.encoding, &first.shape);
    for (name, (facts, _)) in parts {
        if facts.part.name() != *name {
            return Err(format!(
                "the facts of `{name}` are those of {}",
                facts.part.name()
            ));
        }
        if facts.encoding != encoding || facts.shape != *shape {
            return Err(format!(
                "its parts are of different weights: {encoding} {shape:?} and {} {:?}",
                facts.encoding, facts.shape
            ));
        }
    }
    let (mut error, mut sizes) = (None, BTreeMap::new());
    for spec in encoding.parts(shape)? {
        let name = spec.part.name();
        let Some((facts, size)) = parts.get(name) else {
            return Err(format!("it has no {name}"));
        };
        if spec.size_bytes() != Some(*size) {
            return Err(format!(
                "{name} have {size} bytes, which {} {:?} have not",
                spec.element.name(),
                spec.shape
            ));
        }
        if facts.is_main() {
            error.clone_from(&facts.error);
        }
        sizes.insert(spec.part, *size);
    }
    for (facts, _) in parts.values() {
        if !sizes.contains_key(&facts.part) {
            return Err(format!("{encoding} has no {}", facts.part.name()));
        }
    }
    Ok(StoredWeight {
        shape: shape.clone(),
        encoding,
        error,
        sizes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::hash_bytes;
    use crate::model::weight::Element;

    /// Assembles `parts`, each (name, part, shape, bytes), and compares the size of the weight or
    /// the error.
    #[track_caller]
    fn check(parts: &[(&str, WeightPart, [u64; 2], usize)], expected: Result<u64, &str>) {
        let encoding = WeightEncoding::blocks(Element::Int4, 32, Element::F16, None, 64);
        let mut blobs = vec![];
        for (name, part, shape, bytes) in parts {
            let facts = WeightFacts {
                encoding,
                part: *part,
                shape: shape.to_vec(),
                error: None,
            };
            let facts = CanonJson::of(&facts).unwrap();
            blobs.push((format!("w/{name}"), facts, hash_bytes(&vec![0; *bytes])));
        }
        let parts = blobs
            .iter()
            .map(|(name, facts, digest)| (name.as_str(), facts, *digest));
        let found = match stored(parts).unwrap().remove("w").unwrap() {
            Ok(weight) => Ok(weight.size_bytes()),
            Err(why) => Err(why),
        };
        assert_eq!(found, expected.map_err(String::from));
    }

    #[test]
    fn parts_are_assembled_or_rejected_with_a_reason() {
        use WeightPart::{Codes, Offsets, Scales};
        let codes = ("codes", Codes, [4, 64], 128);
        let scales = ("scales", Scales, [4, 64], 16);
        check(&[codes, scales], Ok(144));
        check(&[codes], Err("it has no scales"));
        check(
            &[codes, ("scales", Scales, [2, 64], 16)],
            Err(
                "its parts are of different weights: int4 x32 f16 [4, 64] and int4 x32 f16 [2, 64]",
            ),
        );
        check(
            &[codes, ("scales", Scales, [4, 64], 15)],
            Err("scales have 15 bytes, which f16 [4, 2] have not"),
        );
        check(
            &[codes, ("scales", Offsets, [4, 64], 16)],
            Err("the facts of `scales` are those of offsets"),
        );
        check(
            &[codes, scales, ("offsets", Offsets, [4, 64], 16)],
            Err("int4 x32 f16 has no offsets"),
        );
    }
}
