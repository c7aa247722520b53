//! The outline of a plan: its content, independent of its folder and its formatting. It is known
//! before anything runs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::action::Registry;
use crate::base::{Digest, hash_bytes};
use crate::plan::{Keep, Plan, PlannedStage};

/// The outline of a plan.
pub struct Outline {
    /// The name of the plan.
    pub plan: String,
    /// The digest of its content, except `timeout` and `retries`, which do not change artifacts.
    pub digest: Digest,
    /// By id, in the order of the plan.
    pub stages: Vec<(String, StageOutline)>,
}

/// The outline of a stage.
pub struct StageOutline {
    /// The kind of the stage.
    pub kind: String,
    /// The version of the kind in this kiln.
    pub version: u32,
    /// See [`StageSpec::measures`](crate::action::StageSpec::measures).
    pub measured: bool,
    /// Whether it is built only on request, and may be missing in a lock.
    pub optional: bool,
    /// The digest of its parameters. Paths of files beside the plan are relative.
    pub params: Digest,
    /// Input -> the stages whose output it reads.
    pub inputs: BTreeMap<String, Vec<String>>,
    /// What is written out.
    pub keep: Kept,
}

/// What is written out, in the notation of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Kept {
    /// Everything, or nothing.
    All(bool),
    /// The parts and folders of these names.
    Parts(Vec<String>),
}

impl Kept {
    /// The notation of `keep`.
    pub fn of(keep: &Keep) -> Kept {
        match keep {
            Keep::Nothing => Kept::All(false),
            Keep::All => Kept::All(true),
            Keep::Parts(parts) => Kept::Parts(parts.clone()),
        }
    }
}

impl Outline {
    /// The outline of `plan`, which is in `folder`.
    pub fn of(plan: &Plan, folder: &Path, registry: &Registry) -> Outline {
        let folder = PlanFolder::new(folder);
        let mut stages = vec![];
        let mut content: BTreeMap<&str, Value> = BTreeMap::new();
        for stage in &plan.stages {
            let outline = stage_outline(stage, &folder, registry);
            content.insert(
                &stage.id.0,
                json!({
                    "kind": outline.kind,
                    "params": outline.params,
                    "inputs": outline.inputs,
                    "keep": outline.keep,
                }),
            );
            stages.push((stage.id.0.clone(), outline));
        }
        let content = json!({"plan": plan.name, "stages": content});
        Outline {
            plan: plan.name.clone(),
            digest: hash_bytes(content.to_string().as_bytes()),
            stages,
        }
    }
}

fn stage_outline(stage: &PlannedStage, folder: &PlanFolder, registry: &Registry) -> StageOutline {
    let mut inputs = BTreeMap::new();
    for (slot, producers) in &stage.slots {
        let ids = producers.iter().map(|id| id.0.clone()).collect();
        inputs.insert(slot.clone(), ids);
    }
    // The kinds of a checked plan are in the registry.
    let (version, measured) = match registry.get(&stage.kind) {
        Some(kind) => (kind.spec().version, kind.spec().measures),
        None => (0, false),
    };
    let params = folder.relative(&stage.params);
    StageOutline {
        kind: stage.kind.clone(),
        version,
        measured,
        optional: stage.optional,
        params: hash_bytes(params.to_string().as_bytes()),
        inputs,
        keep: Kept::of(&stage.keep),
    }
}

/// The folder of a plan. Makes the URLs of files in it relative.
pub(super) struct PlanFolder {
    /// The beginning of URLs that were relative in the plan.
    prefix: String,
}

impl PlanFolder {
    /// `folder` is absolute.
    pub(super) fn new(folder: &Path) -> Self {
        PlanFolder {
            prefix: format!("file:{}", folder.join("").display()),
        }
    }

    /// A URL as it would be written in the plan. For a file outside of the folder only its name,
    /// because its location does not matter.
    pub(super) fn relative_url(&self, url: &str) -> String {
        if let Some(path) = url.strip_prefix(&self.prefix) {
            format!("file:{path}")
        } else if let Some(path) = url.strip_prefix("file:/") {
            format!("file:{}", path.rsplit('/').next().unwrap_or(path))
        } else {
            url.into()
        }
    }

    /// `value` with all its strings as [`relative_url`](Self::relative_url).
    fn relative(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.relative_url(text).into(),
            Value::Array(items) => items.iter().map(|item| self.relative(item)).collect(),
            Value::Object(map) => {
                let mut relative = Map::new();
                for (key, value) in map {
                    relative.insert(key.clone(), self.relative(value));
                }
                Value::Object(relative)
            }
            other => other.clone(),
        }
    }
}
