//! A hit counts only if all its blobs still exist.

use super::{ActionCache, ActionResult, BlobStore};
use crate::action::ActionKey;
use crate::base::{Digest, Result};

/// An action cache that knows where its results' blobs lie.
pub struct Complete<'a> {
    /// The results.
    pub actions: &'a dyn ActionCache,
    /// Their blobs.
    pub blobs: &'a dyn BlobStore,
}

/// What is known of an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// Its result, all of it.
    Hit(ActionResult),
    /// It succeeded once, but this blob is gone since.
    Gone(Digest),
    /// It never succeeded.
    Nothing,
}

impl Complete<'_> {
    /// Looks for the result of an action. Costs one small read, and one `stat` a blob.
    pub fn find(&self, key: &ActionKey) -> Result<Found> {
        let Some(result) = self.actions.get(key)? else {
            return Ok(Found::Nothing);
        };
        let mut blobs: Vec<Digest> = result
            .outputs
            .values()
            .map(|part| part.content.blob())
            .collect();
        blobs.sort();
        blobs.dedup();
        Ok(match self.blobs.missing(&blobs)?.first() {
            Some(blob) => Found::Gone(*blob),
            None => Found::Hit(result),
        })
    }
}

impl ActionCache for Complete<'_> {
    fn get(&self, key: &ActionKey) -> Result<Option<ActionResult>> {
        Ok(match self.find(key)? {
            Found::Hit(result) => Some(result),
            Found::Gone(_) | Found::Nothing => None,
        })
    }

    fn put(&self, result: &ActionResult) -> Result<()> {
        self.actions.put(result)
    }
}
