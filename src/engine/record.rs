//! The record of a plan's last builds: the actions that the next build is compared with, and the
//! times of stages.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::Built;
use super::history::{History, StageHistory, StageTimes};
use crate::action::ActionKey;
use crate::base::{Code, Context, Digest, Result, new_file_in, open_file, read_file};
use crate::events::PartId;
use crate::plan::StageId;

/// Limit for the file of a record: enough for more than a million parts of 150 bytes.
const MAX_BYTES: u64 = 256 << 20;

/// The last known key of each part. Stored in the cache folder as `last/PLAN.json`, with two lines:
/// the stages, and the keys, which are read only when needed. Used only for reasons, the order of
/// jobs, and what `gc` keeps.
#[derive(Default)]
pub struct Record {
    path: Option<PathBuf>,
    stages: BTreeMap<String, StageRecord>,
    keys: OnceLock<Keys>,
}

/// By stage and part name.
type Keys = BTreeMap<String, BTreeMap<String, ActionKey>>;

/// What the record has about a stage.
#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct StageRecord {
    /// The digest of the completed stage; `None` if the last build did not complete it.
    completed: Option<Digest>,
    #[serde(flatten)]
    before: StageHistory,
}

impl Record {
    /// Opens the record of a plan; empty if there is none or it is invalid.
    pub fn open(cache: &Path, plan: &str) -> Result<Record> {
        let path = cache.join("last").join(format!("{plan}.json"));
        let stages = match read_first_line(&path) {
            Ok(line) => serde_json::from_str(&line).unwrap_or_default(),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::InvalidData | ErrorKind::InvalidInput
                ) =>
            {
                BTreeMap::new()
            }
            Err(error) => {
                return Err(error)
                    .context(Code::EngineRecord, || format!("read {}", path.display()));
            }
        };
        Ok(Record {
            path: Some(path),
            stages,
            keys: OnceLock::new(),
        })
    }

    /// The keys in the records of all plans. Fails for an invalid record, because the caller is
    /// about to remove what no record names.
    pub fn all(cache: &Path) -> Result<Vec<ActionKey>> {
        let folder = cache.join("last");
        let failed = || format!("list {}", folder.display());
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.context(Code::EngineRecord, failed)?,
        };
        let mut keys = vec![];
        for entry in entries {
            let path = entry.context(Code::EngineRecord, failed)?.path();
            if path.extension() != Some("json".as_ref()) {
                continue;
            }
            let text = read_text(&path)
                .context(Code::EngineRecord, || format!("read {}", path.display()))?;
            match parse_keys(&text).context(Code::EngineRecord, || {
                format!("understand {}", path.display())
            }) {
                Ok(stages) => {
                    for parts in stages.into_values() {
                        keys.extend(parts.into_values());
                    }
                }
                Err(problem) => {
                    return Err(problem.help(
                        "remove the file and build that plan again; until then its last build \
                         keeps nothing",
                    ));
                }
            }
        }
        Ok(keys)
    }

    /// The last key of a part.
    pub fn key(&self, part: &PartId) -> Option<ActionKey> {
        self.keys().get(&part.stage)?.get(&part.part).copied()
    }

    /// The times and outputs of the stages.
    pub fn history(&self) -> History {
        let mut history = History::default();
        for (stage, record) in &self.stages {
            history.0.insert(stage.clone(), record.before);
        }
        history
    }

    /// The keys; none if the record is invalid, which only affects reasons.
    fn keys(&self) -> &Keys {
        self.keys.get_or_init(|| {
            if let Some(path) = &self.path
                && let Ok(text) = read_text(path)
                && let Ok(keys) = parse_keys(&text)
            {
                return keys;
            }
            Keys::new()
        })
    }

    /// Updates the record with a build; returns whether anything changed. A completed stage has
    /// exactly these parts. In a stage that is not complete, parts without outputs keep their old
    /// keys.
    pub fn merge(&mut self, built: &Built) -> Result<bool> {
        if !self.is_changed_by(built) {
            return Ok(false);
        }
        let mut keys = self.keys().clone();
        let mut times: BTreeMap<&str, StageTimes> = BTreeMap::new();
        for part in &built.parts {
            if part.state.outputs().is_none() {
                continue;
            }
            let stage = &part.id.stage;
            times.entry(stage).or_default().add(part.state.took_ms());
            keys.entry(stage.clone())
                .or_default()
                .insert(part.id.part.clone(), part.task.key);
            self.stages.entry(stage.clone()).or_default().completed = None;
        }
        for (stage, completed) in &built.completed {
            let parts = completed.details()?.parts.iter().cloned().collect();
            keys.insert(stage.0.clone(), parts);
            let record = self.stages.entry(stage.0.clone()).or_default();
            record.completed = Some(completed.digest());
            record.before.output = Some(completed.output());
            if let Some(times) = times.get(stage.0.as_str()) {
                record.before.took = *times;
            }
        }
        self.keys = keys.into();
        Ok(true)
    }

    fn is_changed_by(&self, built: &Built) -> bool {
        for (stage, completed) in &built.completed {
            match self.stages.get(&stage.0) {
                Some(record) if record.completed == Some(completed.digest()) => {}
                _ => return true,
            }
        }
        // Finished parts of stages that are not complete.
        for part in &built.parts {
            if part.state.outputs().is_some()
                && !built
                    .completed
                    .contains_key(&StageId(part.id.stage.clone()))
            {
                return true;
            }
        }
        false
    }

    /// Replaces the record of the plan atomically.
    pub fn write(&self) -> Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        self.write_to(path)
            .context(Code::EngineRecord, || format!("write {}", path.display()))
    }

    fn write_to(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap_or(path);
        std::fs::create_dir_all(folder)?;
        let mut file = new_file_in(folder, ".tmp")?;
        let stages = serde_json::to_vec(&self.stages)?;
        let keys = serde_json::to_vec(self.keys())?;
        for line in [stages, keys] {
            file.write_all(&line)?;
            file.write_all(b"\n")?;
        }
        file.persist(path)?;
        Ok(())
    }
}

fn read_first_line(path: &Path) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(open_file(path)?.take(MAX_BYTES)).read_line(&mut line)?;
    Ok(line)
}

fn read_text(path: &Path) -> io::Result<String> {
    match String::from_utf8(read_file(path, MAX_BYTES)?) {
        Ok(text) => Ok(text),
        Err(error) => Err(io::Error::new(ErrorKind::InvalidData, error)),
    }
}

/// The keys in the text of a record.
fn parse_keys(text: &str) -> serde_json::Result<Keys> {
    serde_json::from_str(text.lines().nth(1).unwrap_or_default())
}
