//! What a plan says, wherever it lies and however it is spelled. Known before anything runs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::action::Registry;
use crate::base::{Digest, hash_bytes};
use crate::plan::{Keep, Plan, PlannedStage};

/// A plan in outline.
pub struct Outline {
    /// The name of the plan.
    pub plan: String,
    /// Of all that it says, but for what must not change bytes: `timeout` and `retries`.
    pub digest: Digest,
    /// In the order of the plan.
    pub stages: Vec<(String, Asked)>,
}

/// What it says of a stage.
pub struct Asked {
    /// The kind of the stage.
    pub kind: String,
    /// Of the code that this kiln has for the kind.
    pub version: u32,
    /// See [`StageSpec::measures`](crate::action::StageSpec::measures).
    pub measured: bool,
    /// It is built only where it is asked for, and so may be missing in a lock.
    pub optional: bool,
    /// Of its parameters, files beside the plan by their paths from there.
    pub params: Digest,
    /// Input -> the stages that feed it.
    pub inputs: BTreeMap<String, Vec<String>>,
    /// What is written out.
    pub keep: Kept,
}

/// What is written out, spelled as in a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Kept {
    /// Everything, or nothing.
    All(bool),
    /// The parts of these names.
    Parts(Vec<String>),
}

impl Kept {
    /// What `keep` says.
    pub fn of(keep: &Keep) -> Kept {
        match keep {
            Keep::Nothing => Kept::All(false),
            Keep::All => Kept::All(true),
            Keep::Parts(parts) => Kept::Parts(parts.clone()),
        }
    }
}

impl Outline {
    /// Of `plan`, which lies in `folder`.
    pub fn of(plan: &Plan, folder: &Path, registry: &Registry) -> Outline {
        let inside = Inside::of(folder);
        let stages: Vec<(String, Asked)> = plan
            .stages
            .iter()
            .map(|stage| (stage.id.0.clone(), asked(stage, &inside, registry)))
            .collect();
        let said: BTreeMap<&str, Value> = stages
            .iter()
            .map(
                |(
                    id,
                    Asked {
                        kind,
                        params,
                        inputs,
                        keep,
                        ..
                    },
                )| {
                    (
                        id.as_str(),
                        json!({"kind": kind, "params": params, "inputs": inputs, "keep": keep}),
                    )
                },
            )
            .collect();
        let digest = hash_bytes(
            json!({"plan": plan.name, "stages": said})
                .to_string()
                .as_bytes(),
        );
        Outline {
            plan: plan.name.clone(),
            digest,
            stages,
        }
    }
}

fn asked(stage: &PlannedStage, inside: &Inside, registry: &Registry) -> Asked {
    let names = |(slot, producers): (&String, &Vec<crate::plan::StageId>)| {
        (
            slot.clone(),
            producers
                .iter()
                .map(|producer| producer.0.clone())
                .collect(),
        )
    };
    // A checked plan names no kind that is not there.
    let spec = registry.get(&stage.kind).map(|kind| kind.spec());
    Asked {
        kind: stage.kind.clone(),
        version: spec.map_or(0, |spec| spec.version),
        measured: spec.is_some_and(|spec| spec.measures),
        optional: stage.optional,
        params: hash_bytes(inside.spelled(&stage.params).to_string().as_bytes()),
        inputs: stage.slots.iter().map(names).collect(),
        keep: Kept::of(&stage.keep),
    }
}

/// Knows the files beside a plan by their paths from there.
pub struct Inside {
    /// How a URL begins that was relative in the plan.
    prefix: String,
}

impl Inside {
    /// Of the plan's absolute folder.
    pub fn of(folder: &Path) -> Inside {
        Inside {
            prefix: format!("file:{}", folder.join("").display()),
        }
    }

    /// A URL as it would be written beside the plan. Of a file elsewhere only the name: where it
    /// lies is not what it is.
    pub fn url(&self, url: &str) -> String {
        match (url.strip_prefix(&self.prefix), url.strip_prefix("file:/")) {
            (Some(path), _) => format!("file:{path}"),
            (None, Some(path)) => format!("file:{}", path.rsplit('/').next().unwrap_or(path)),
            (None, None) => url.into(),
        }
    }

    fn spelled(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.url(text).into(),
            Value::Array(items) => items.iter().map(|item| self.spelled(item)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), self.spelled(value)))
                .collect(),
            other => other.clone(),
        }
    }
}
