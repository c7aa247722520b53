//! The stage kinds that are known, by name.

use std::collections::BTreeMap;

use super::Stage;

/// Stage kinds by name; `stages::all()` makes one.
pub struct Registry {
    stages: BTreeMap<&'static str, Box<dyn Stage>>,
}

impl Registry {
    /// A registry of `stages`.
    pub fn new(stages: Vec<Box<dyn Stage>>) -> Self {
        Registry {
            stages: stages
                .into_iter()
                .map(|stage| (stage.spec().kind, stage))
                .collect(),
        }
    }

    /// The stage called `kind`.
    pub fn get(&self, kind: &str) -> Option<&dyn Stage> {
        self.stages.get(kind).map(Box::as_ref)
    }

    /// All kinds, sorted.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.stages.keys().copied()
    }
}
