//! Lookups in the action cache that count a result only if all its blobs exist.

use super::{ActionCache, ActionResult, BlobStore};
use crate::action::ActionKey;
use crate::base::{Digest, Result};

/// An action cache together with the store of its blobs.
pub struct CompleteCache<'a> {
    /// The results.
    pub actions: &'a dyn ActionCache,
    /// Their blobs.
    pub blobs: &'a dyn BlobStore,
}

/// The outcome of looking for the result of an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// The result; all its blobs exist.
    Hit(ActionResult),
    /// There is a result, but this blob of it is missing.
    MissingBlob(Digest),
    /// There is no result.
    Miss,
}

impl CompleteCache<'_> {
    /// Looks for the result of an action. Costs one small read, and one `stat` per blob.
    pub fn look_up(&self, key: &ActionKey) -> Result<Lookup> {
        let Some(result) = self.actions.get(key)? else {
            return Ok(Lookup::Miss);
        };
        let mut blobs: Vec<Digest> = result.blobs().collect();
        blobs.sort();
        blobs.dedup();
        Ok(match self.blobs.missing(&blobs)?.first() {
            Some(blob) => Lookup::MissingBlob(*blob),
            None => Lookup::Hit(result),
        })
    }
}

impl ActionCache for CompleteCache<'_> {
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>> {
        Ok(match self.look_up(key)? {
            Lookup::Hit(result) => Some(result),
            Lookup::MissingBlob(_) | Lookup::Miss => None,
        })
    }

    fn put(&self, result: &ActionResult) -> Result<()> {
        self.actions.put(result)
    }
}
