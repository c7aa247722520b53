//! Whether a result that a cache has is known to be what its action gives.
//!
//! Whoever fills a cache is believed as far as stages compute: their key says what went in. A pin
//! says what must come out, and that is checked, once for each result.

use crate::action::{Part, Proof};
use crate::base::{Context, Digest, Result, hash_bytes};
use crate::store::{ActionResult, BlobStore, Notes, Sha256, ran_here};

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
        Proof::Key | Proof::Digest(_) | Proof::Sha256(_) => Ok(()),
    }
}

fn digest(result: &ActionResult) -> Result<Digest> {
    let text = serde_json::to_vec(&result.outputs)
        .context("kiln::engine::proof", || "spell outputs".into())?;
    Ok(hash_bytes(&text))
}
