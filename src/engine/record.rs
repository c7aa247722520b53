//! What the last builds of a plan came to: the actions that today's are compared with, and the time
//! that stages took.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::Built;
use super::history::{Before, History, Took};
use crate::action::ActionKey;
use crate::base::{Code, Context, Digest, Result, new_file_in, open_file, read_file};
use crate::events::PartId;
use crate::plan::StageId;

/// The key of each part when it was last there. A file `last/PLAN.json` in the cache folder, of two
/// lines: what is known of each stage as a whole, and the keys, which are read only if someone
/// asks. Nothing but reasons, the order of work and what `gc` keeps hangs on it.
#[derive(Default)]
pub struct Record {
    path: Option<PathBuf>,
    stages: BTreeMap<String, StageDetails>,
    keys: OnceLock<Keys>,
}

/// What comes of opening none, or something that is no file or no text.
const NO_RECORD: [ErrorKind; 3] = [
    ErrorKind::NotFound,
    ErrorKind::InvalidData,
    ErrorKind::InvalidInput,
];

/// Cap on such a file: a part needs 150 bytes, so it holds a million and more.
const MAX_BYTES: u64 = 256 << 20;

/// By stage and part name.
type Keys = BTreeMap<String, BTreeMap<String, ActionKey>>;

/// A stage as a whole.
#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct StageDetails {
    /// Of the stage when it was complete; of none if the last build left it incomplete.
    completed: Option<Digest>,
    #[serde(flatten)]
    before: Before,
}

impl Record {
    /// Opens the record of a plan; empty if there is none, or none that can be understood.
    pub fn open(cache: &Path, plan: &str) -> Result<Record> {
        let path = cache.join("last").join(format!("{plan}.json"));
        let mut line = String::new();
        let read = |file: File| BufReader::new(file.take(MAX_BYTES)).read_line(&mut line);
        match open_file(&path).and_then(read) {
            Err(error) if !NO_RECORD.contains(&error.kind()) => {
                Err(error).context(Code::EngineRecord, || format!("read {}", path.display()))
            }
            _ => {
                let stages = serde_json::from_str(&line).unwrap_or_default();
                Ok(Record {
                    path: Some(path),
                    stages,
                    keys: OnceLock::new(),
                })
            }
        }
    }

    /// The keys in the records of all plans: what their last builds asked. A record that cannot be
    /// understood is a problem here, because somebody is about to remove what no record names.
    pub fn all(cache: &Path) -> Result<Vec<ActionKey>> {
        let folder = cache.join("last");
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
            entries => {
                entries.context(Code::EngineRecord, || format!("list {}", folder.display()))?
            }
        };
        let mut keys = vec![];
        for entry in entries {
            let path = entry
                .context(Code::EngineRecord, || format!("list {}", folder.display()))?
                .path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                let text = read_text(&path)
                    .context(Code::EngineRecord, || format!("read {}", path.display()))?;
                let understood = read_keys(&text);
                let all = understood
                    .context(Code::EngineRecord, || {
                        format!("understand {}", path.display())
                    })
                    .map_err(|problem| {
                        problem.help(
                            "remove the file and build that plan again; until then its last build \
                             keeps nothing",
                        )
                    })?;
                keys.extend(all.into_values().flat_map(BTreeMap::into_values));
            }
        }
        Ok(keys)
    }

    /// The key that a part had.
    pub fn key(&self, part: &PartId) -> Option<ActionKey> {
        self.keys().get(&part.stage)?.get(&part.part).copied()
    }

    /// What each stage took and gave.
    pub fn history(&self) -> History {
        History(
            self.stages
                .iter()
                .map(|(stage, details)| (stage.clone(), details.before))
                .collect(),
        )
    }

    fn keys(&self) -> &Keys {
        self.keys.get_or_init(|| {
            let text = self.path.as_ref().and_then(|path| read_text(path).ok());
            // The keys of a record that is no record are unknown; only reasons are lost.
            text.and_then(|text| read_keys(&text).ok())
                .unwrap_or_default()
        })
    }

    /// Adds what a build brought about, and yields whether that is news. A stage that is complete
    /// has these parts and no others; of one that is not, the parts that did not come about
    /// keep their old keys.
    pub fn merge(&mut self, built: &Built) -> Result<bool> {
        let known = |stage: &String| self.stages.get(stage).and_then(|details| details.completed);
        let is_news = built
            .completed
            .iter()
            .any(|(stage, completed)| known(&stage.0) != Some(completed.digest()));
        let done = || {
            built
                .parts
                .iter()
                .filter(|part| part.state.outputs().is_some())
        };
        let is_whole = |stage: &String| built.completed.contains_key(&StageId(stage.clone()));
        if !is_news && done().all(|part| is_whole(&part.id.stage)) {
            return Ok(false);
        }
        let mut keys = self.keys().clone();
        let mut took: BTreeMap<&str, Took> = BTreeMap::new();
        for part in done() {
            took.entry(&part.id.stage)
                .or_default()
                .add(part.state.took_ms());
            keys.entry(part.id.stage.clone())
                .or_default()
                .insert(part.id.part.clone(), part.task.key);
            self.stages
                .entry(part.id.stage.clone())
                .or_default()
                .completed = None;
        }
        for (stage, completed) in &built.completed {
            keys.insert(
                stage.0.clone(),
                completed.details()?.parts.iter().cloned().collect(),
            );
            let details = self.stages.entry(stage.0.clone()).or_default();
            details.completed = Some(completed.digest());
            let took = took
                .get(stage.0.as_str())
                .copied()
                .unwrap_or(details.before.took);
            details.before = Before {
                took,
                output: Some(completed.output()),
            };
        }
        self.keys = keys.into();
        Ok(true)
    }

    /// Replaces the record of a plan, whole or not at all.
    pub fn write(&self) -> Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let write = || -> io::Result<()> {
            let folder = path.parent().unwrap_or(path);
            std::fs::create_dir_all(folder)?;
            let mut file = new_file_in(folder, ".tmp")?;
            for line in [
                serde_json::to_vec(&self.stages)?,
                serde_json::to_vec(self.keys())?,
            ] {
                file.write_all(&line)?;
                file.write_all(b"\n")?;
            }
            file.persist(path)?;
            Ok(())
        };
        write().context(Code::EngineRecord, || format!("write {}", path.display()))
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read_file(path, MAX_BYTES)?)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// The keys in the text of a record.
fn read_keys(text: &str) -> serde_json::Result<Keys> {
    serde_json::from_str(text.lines().nth(1).unwrap_or_default())
}
