//! The weights of a model, put together from their parts.

use std::collections::BTreeMap;

use super::{ErrorFacts, WeightEncoding, WeightFacts, WeightPart};
use crate::base::{CanonJson, Code, Digest, Problem, Result};

/// A weight whose parts are all there and fit its encoding.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredWeight {
    /// `[rows, columns]` or `[n]`.
    pub shape: Vec<u64>,
    /// How it is stored.
    pub encoding: WeightEncoding,
    /// How far it is from the tensor it was made of.
    pub error: Option<ErrorFacts>,
    /// Length of each of its blobs.
    pub sizes: BTreeMap<WeightPart, u64>,
}

impl StoredWeight {
    /// Length of all its blobs.
    pub fn size_bytes(&self) -> u64 {
        self.sizes.values().copied().fold(0, u64::saturating_add)
    }
}

/// A weight, or why its parts make none.
pub type Stored = std::result::Result<StoredWeight, String>;

/// The parts of one weight, by the last segment of their names.
type Parts<'a> = BTreeMap<&'a str, (WeightFacts, u64)>;

/// The weights whose parts are `NAME/codes` and so on, by their names.
pub fn stored<'a>(
    parts: impl Iterator<Item = (&'a str, &'a CanonJson, Digest)>,
) -> Result<BTreeMap<String, Stored>> {
    let mut by_weight: BTreeMap<&str, Parts> = BTreeMap::new();
    for (name, facts, digest) in parts {
        let (weight, part) = name.rsplit_once('/').ok_or_else(|| {
            let what =
                format!("`{name}` is no part of a weight: expected `NAME/codes` or the like");
            Problem::new(Code::WeightsPart, what)
        })?;
        let facts = facts
            .read()
            .map_err(|problem| problem.within(format!("failed to read the facts of `{name}`")))?;
        by_weight
            .entry(weight)
            .or_default()
            .insert(part, (facts, digest.size_bytes));
    }
    let weights = by_weight.into_iter();
    Ok(weights
        .map(|(name, parts)| (name.to_string(), put_together(&parts)))
        .collect())
}

fn put_together(parts: &Parts) -> Stored {
    let Some((first, _)) = parts.values().next() else {
        return Err("it has no parts".into());
    };
    let (encoding, shape) = (first.encoding, &first.shape);
    for (name, (facts, _)) in parts {
        if facts.part.name() != *name {
            return Err(format!("`{name}` says that it is {}", facts.part.name()));
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
        let (facts, size) = parts.get(name).ok_or_else(|| format!("it has no {name}"))?;
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
    match parts
        .values()
        .find(|(facts, _)| !sizes.contains_key(&facts.part))
    {
        Some((facts, _)) => Err(format!("{encoding} has no {}", facts.part.name())),
        None => Ok(StoredWeight {
            shape: shape.clone(),
            encoding,
            error,
            sizes,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::hash_bytes;
    use crate::model::weight::Element;

    /// What becomes of `parts`: (name, part, shape, bytes).
    #[track_caller]
    fn check(parts: &[(&str, WeightPart, [u64; 2], usize)], expected: Result<u64, &str>) {
        let encoding = WeightEncoding::blocks(Element::Int4, 32, Element::F16, None, 64);
        let parts: Vec<_> = parts
            .iter()
            .map(|(name, part, shape, bytes)| {
                let facts = WeightFacts {
                    encoding,
                    part: *part,
                    shape: shape.to_vec(),
                    error: None,
                };
                let facts = CanonJson::of(&facts).unwrap();
                (format!("w/{name}"), facts, hash_bytes(&vec![0; *bytes]))
            })
            .collect();
        let parts = parts
            .iter()
            .map(|(name, facts, digest)| (name.as_str(), facts, *digest));
        let found = stored(parts).unwrap().remove("w").unwrap();
        let found = found.map(|weight| weight.size_bytes());
        assert_eq!(found, expected.map_err(String::from));
    }

    #[test]
    fn parts_make_a_weight_or_are_refused_with_a_reason() {
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
            Err("`scales` says that it is offsets"),
        );
        check(
            &[codes, scales, ("offsets", Offsets, [4, 64], 16)],
            Err("int4 x32 f16 has no offsets"),
        );
    }
}
