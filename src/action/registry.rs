//! The stage kinds, by name.

use std::collections::BTreeMap;

use super::Stage;

/// Stage kinds by name; `stages::all()` returns one.
pub struct Registry {
    stages: BTreeMap<&'static str, Box<dyn Stage>>,
}

impl Registry {
    /// A registry of `stages`.
    pub fn new(stages: Vec<Box<dyn Stage>>) -> Self {
        let mut by_kind = BTreeMap::new();
        for stage in stages {
            by_kind.insert(stage.spec().kind, stage);
        }
        Registry { stages: by_kind }
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
