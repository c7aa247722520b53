//! Checks whether a result in the cache really is the result of its action.
//!
//! A cache may contain results from other machines. The results of computations are trusted: the
//! key covers the inputs. A pinned digest fixes the output, so the output is compared with it, once
//! per result. Output names are compared if the action declares them.

use crate::action::{Content, Outputs, Proof, matches_output};
use crate::base::{Code, Context, Digest, Result, hash_bytes};
use crate::events::Why;
use crate::store::{ActionResult, BlobStore, Notes, Sha256, local_run_note};

/// Why `result` must not be used, by `proof`; `None` if it may.
pub(super) fn why_unproved(
    proof: &Proof,
    result: &ActionResult,
    blobs: &dyn BlobStore,
    notes: &dyn Notes,
) -> Result<Option<Why>> {
    if is_proved(proof, result, blobs, notes)? {
        return Ok(None);
    }
    Ok(Some(match proof {
        Proof::Outputs(_) => Why::OtherOutputs,
        _ => Why::Unproved,
    }))
}

/// Whether `proof` shows that `result` is the result of its action.
pub fn is_proved(
    proof: &Proof,
    result: &ActionResult,
    blobs: &dyn BlobStore,
    notes: &dyn Notes,
) -> Result<bool> {
    match proof {
        Proof::Key => Ok(true),
        Proof::Digest(digest) => match only_output(result) {
            Some(content) => Ok(content.digest == *digest),
            None => Ok(false),
        },
        Proof::Sha256(pin) => match only_output(result) {
            Some(content) => Ok(Sha256::of(content, blobs, notes)?.to_string() == *pin),
            None => Ok(false),
        },
        Proof::Outputs(patterns) => Ok(match_outputs(patterns, &result.outputs)),
        Proof::LocalRun => match notes.read(&local_run_note(&result.key().0.hex()))? {
            Some(note) => Ok(note.text == outputs_digest(result)?.to_string()),
            None => Ok(false),
        },
    }
}

/// Notes that the action of `result` ran for this cache, if `proof` needs it.
pub fn note_proof(proof: &Proof, result: &ActionResult, notes: &dyn Notes) -> Result<()> {
    match proof {
        Proof::LocalRun => notes.write(
            &local_run_note(&result.key().0.hex()),
            &outputs_digest(result)?.to_string(),
        ),
        Proof::Key | Proof::Digest(_) | Proof::Sha256(_) | Proof::Outputs(_) => Ok(()),
    }
}

fn only_output(result: &ActionResult) -> Option<&Content> {
    let mut parts = result.outputs.values();
    match (parts.next(), parts.next()) {
        (Some(part), None) => Some(&part.content),
        _ => None,
    }
}

/// Whether each output matches a pattern, and each pattern an output.
fn match_outputs(patterns: &[String], outputs: &Outputs) -> bool {
    let mut unmatched: Vec<&String> = patterns.iter().collect();
    for name in outputs.keys() {
        if !patterns.iter().any(|it| matches_output(it, name.as_str())) {
            return false;
        }
        unmatched.retain(|pattern| !matches_output(pattern, name.as_str()));
    }
    unmatched.is_empty()
}

fn outputs_digest(result: &ActionResult) -> Result<Digest> {
    let text = serde_json::to_vec(&result.outputs)
        .context(Code::EngineProof, || "serialize outputs".into())?;
    Ok(hash_bytes(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Part, PartName};
    use crate::base::CanonJson;
    use crate::store::Memory;

    #[test]
    fn outputs_must_match_the_patterns() {
        let check = |patterns: &[&str], outputs: &[&str], expected: Option<Why>| {
            let mut parts = Outputs::new();
            for name in outputs {
                let part = Part {
                    content: hash_bytes(b"clay").into(),
                    facts: CanonJson::default(),
                };
                parts.insert(PartName::new(*name).unwrap(), part);
            }
            let result = ActionResult {
                action: String::new(),
                outputs: parts,
                took_ms: 0,
                peak_memory_bytes: None,
            };
            let proof = Proof::Outputs(patterns.iter().map(|name| name.to_string()).collect());
            let memory = Memory::default();
            let found = why_unproved(&proof, &result, &memory, &memory).unwrap();
            assert_eq!(found, expected, "{patterns:?} {outputs:?}");
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
