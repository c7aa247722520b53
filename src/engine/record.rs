//! What the last builds of a plan asked: the actions that today's are compared with.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Built;
use crate::action::ActionKey;
use crate::base::{Context, Result};
use crate::events::PartId;

/// The key of each part when it was last there, by stage and part name. A file `last/PLAN.json` in the
/// cache folder: no build depends on it, only its reasons, and what `kiln cache gc` keeps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Record {
    keys: BTreeMap<String, BTreeMap<String, ActionKey>>,
}

impl Record {
    /// Reads the record of a plan; empty if there is none, or none that can be understood.
    pub fn read(cache: &Path, plan: &str) -> Result<Record> {
        let path = path(cache, plan);
        match std::fs::read(&path) {
            Ok(text) => Ok(serde_json::from_slice(&text).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error).context("kiln::engine::record", || format!("read {}", path.display())),
        }
    }

    /// The keys in the records of all plans: what their last builds asked. A record that cannot be understood is a
    /// problem here, because somebody is about to remove what no record names.
    pub fn all(cache: &Path) -> Result<Vec<ActionKey>> {
        const CODE: &str = "kiln::engine::record";
        let folder = cache.join("last");
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.context(CODE, || format!("list {}", folder.display()))?,
        };
        let mut keys = vec![];
        for entry in entries {
            let path = entry.context(CODE, || format!("list {}", folder.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = std::fs::read(&path).context(CODE, || format!("read {}", path.display()))?;
                let understood = serde_json::from_slice::<Record>(&text);
                let record =
                    understood.context(CODE, || format!("understand {}", path.display())).map_err(|problem| {
                        problem.help("build that plan again, or remove the file: then its last build keeps nothing")
                    })?;
                keys.extend(record.keys.into_values().flat_map(BTreeMap::into_values));
            }
        }
        Ok(keys)
    }

    /// The key that a part had.
    pub fn key(&self, part: &PartId) -> Option<&ActionKey> {
        self.keys.get(&part.stage)?.get(&part.part)
    }

    /// Adds what a build brought about. A stage that is complete has these parts and no others; of one
    /// that is not, the parts that did not come about keep their old keys.
    pub fn merge(&mut self, built: &Built) {
        for stage in built.manifests.keys() {
            self.keys.remove(&stage.0);
        }
        for part in built.parts.iter().filter(|part| part.life.outputs().is_some()) {
            let stage = self.keys.entry(part.id.stage.clone()).or_default();
            stage.insert(part.id.part.clone(), part.task.key);
        }
    }

    /// Replaces the record of a plan, whole or not at all.
    pub fn write(&self, cache: &Path, plan: &str) -> Result<()> {
        let path = path(cache, plan);
        let write = || -> std::io::Result<()> {
            let folder = path.parent().unwrap_or(cache);
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.persist(&path)?;
            Ok(())
        };
        write().context("kiln::engine::record", || format!("write {}", path.display()))
    }
}

fn path(cache: &Path, plan: &str) -> PathBuf {
    cache.join("last").join(format!("{plan}.json"))
}
