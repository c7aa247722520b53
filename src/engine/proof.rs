//! Whether a result that a cache has is known to be what its action gives.
//!
//! Whoever fills a cache is believed as far as stages compute: their key says what went in. A pin
//! says what must come out, and that is checked, once for each result; so are the names of outputs,
//! where the action names them itself.

use crate::action::{Part, PartName, Proof, stands_for};
use crate::base::{Code, Context, Digest, Result, hash_bytes};
use crate::events::Why;
use crate::store::{ActionResult, BlobStore, Notes, Sha256, ran_here};

/// Why `result` is not known to be its action's own, by `proof`; nothing if it is.
pub fn doubt(
    proof: &Proof,
    result: &ActionResult,
    blobs: &dyn BlobStore,
    notes: &dyn Notes,
) -> Result<Option<Why>> {
    Ok(match holds(proof, result, blobs, notes)? {
        true => None,
        false if matches!(proof, Proof::Outputs(_)) => Some(Why::OtherOutputs),
        false => Some(Why::Unproved),
    })
}

/// Whether `result` is known to be its action's own, by `proof`.
pub fn holds(
    proof: &Proof,
    result: &ActionResult,
    blobs: &dyn BlobStore,
    notes: &dyn Notes,
) -> Result<bool> {
    let only = || {
        result
            .outputs
            .values()
            .next()
            .filter(|_| result.outputs.len() == 1)
    };
    match proof {
        Proof::Key => Ok(true),
        Proof::Digest(digest) => {
            Ok(only().is_some_and(|part: &Part| part.content.digest == *digest))
        }
        Proof::Sha256(pin) => match only() {
            Some(part) => Ok(Sha256::of(&part.content, blobs, notes)?.to_string() == *pin),
            None => Ok(false),
        },
        Proof::Outputs(wanted) => {
            let names = || result.outputs.keys().map(PartName::as_str);
            let is_wanted = |name: &str| wanted.iter().any(|it| stands_for(it, name));
            let is_there = |it: &String| names().any(|name| stands_for(it, name));
            Ok(names().all(is_wanted) && wanted.iter().all(is_there))
        }
        Proof::Own => {
            let outputs = digest(result)?.to_string();
            Ok(notes
                .read(&ran_here(&result.key().0.hex()))?
                .is_some_and(|note| note.text == outputs))
        }
    }
}

/// Notes that `result` came of a run for this cache, if that is its proof.
pub fn note(proof: &Proof, result: &ActionResult, notes: &dyn Notes) -> Result<()> {
    match proof {
        Proof::Own => notes.write(
            &ran_here(&result.key().0.hex()),
            &digest(result)?.to_string(),
        ),
        Proof::Key | Proof::Digest(_) | Proof::Sha256(_) | Proof::Outputs(_) => Ok(()),
    }
}

fn digest(result: &ActionResult) -> Result<Digest> {
    let text = serde_json::to_vec(&result.outputs)
        .context(Code::EngineProof, || "serialize outputs".into())?;
    Ok(hash_bytes(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::CanonJson;
    use crate::store::Memory;

    #[test]
    fn a_result_has_the_outputs_that_are_wanted() {
        let check = |wanted: &[&str], outputs: &[&str], expected: Option<Why>| {
            let part = |name: &&str| {
                let part = Part {
                    content: hash_bytes(b"clay").into(),
                    facts: CanonJson::default(),
                };
                (PartName::new(*name).unwrap(), part)
            };
            let result = ActionResult {
                action: String::new(),
                outputs: outputs.iter().map(part).collect(),
                took_ms: 0,
                peak_memory_bytes: None,
            };
            let proof = Proof::Outputs(wanted.iter().map(|name| name.to_string()).collect());
            let memory = Memory::default();
            let found = doubt(&proof, &result, &memory, &memory).unwrap();
            assert_eq!(found, expected, "{wanted:?} {outputs:?}");
        };
        let other = || Some(Why::OtherOutputs);
        check(&["a", "b/"], &["a", "b/c", "b/d/e"], None);
        check(&["b/", "b/c"], &["b/c"], None);
        check(&["a", "b/"], &["a"], other());
        check(&["a", "b/"], &["b/c"], other());
        check(&["a"], &[], other());
        check(&["a"], &["a", "evil"], other());
        check(&["b/"], &["b"], other());
        check(&["b"], &["b/c"], other());
    }
}
