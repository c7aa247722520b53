//! What a stage is to the engine: a specification, a check, a pure expansion and a run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::Schema;
use serde_json::Value;

use super::{Action, ArtifactKind, Content, Ingredient, Inputs, Job, Outputs, Part};
use crate::base::{Digest, Problem, Result};

/// What a stage kind is called, takes and gives.
#[derive(Clone, Debug)]
pub struct StageSpec {
    /// The word in `kind = "..."`.
    pub kind: &'static str,
    /// Bumped whenever the same action would give other bytes.
    pub version: u32,
    /// One line for people.
    pub summary: &'static str,
    /// The artifact it gives.
    pub output: ArtifactKind,
    /// Its input slots: parameters whose value names a stage.
    pub inputs: &'static [InputSpec],
    /// The names of its own parameters, for "did you mean".
    pub params: &'static [&'static str],
    /// Those of its parameters that are tables by the names of stages, each with the slot that the
    /// stages are in.
    pub keyed: &'static [(&'static str, &'static str)],
    /// Whether it depends on what may fail today and be there tomorrow: the network.
    pub reaches_outside: bool,
    /// Whether it gives figures that are measured in floating point: their last digits depend on
    /// the processor.
    pub measures: bool,
}

/// In [`InputSpec::accepts`]: whatever a stage gives.
pub const ANY: ArtifactKind = "*";

/// Behind the name of a tool: it is loaded only if the plan has it, and the inputs ask for it.
pub const MAY_BE: char = '?';

/// One input slot.
#[derive(Clone, Debug)]
pub struct InputSpec {
    /// The parameter's name.
    pub name: &'static str,
    /// One line for people.
    pub meaning: &'static str,
    /// The artifacts it accepts.
    pub accepts: &'static [ArtifactKind],
    /// Whether it must be given.
    pub required: bool,
    /// Whether it takes a list of stages.
    pub many: bool,
}

impl InputSpec {
    /// Whether an artifact of kind `gives` may fill it.
    pub fn takes(&self, output: ArtifactKind) -> bool {
        self.accepts
            .iter()
            .any(|kind| *kind == output || *kind == ANY)
    }
}

/// A stage that feeds another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The input slot that it fills.
    pub slot: String,
    /// Its id.
    pub stage: String,
    /// The artifact that it gives.
    pub artifact: ArtifactKind,
}

impl Given {
    /// Whether one of `given` fills `slot`.
    pub fn fills(given: &[Given], slot: &str) -> bool {
        given.iter().any(|given| given.slot == slot)
    }
}

/// A mistake in the parameters: which one, what is wrong with it.
#[derive(Clone, Debug)]
pub struct ParamProblem {
    /// Path of keys and indices from the stage's table: `override/0/scheme`; empty for the table
    /// itself.
    pub path: String,
    /// What is wrong and how to mend it; labels are filled in by the plan room.
    pub problem: Problem,
}

/// Where an action runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// On a thread of the engine.
    #[default]
    Thread,
    /// In a child process of its own: whatever loads a vendor library.
    Process,
}

/// What an action needs while it runs. No part of the key: it must not change bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Peak memory, in bytes.
    pub memory_bytes: u64,
    /// Busy threads.
    pub threads: u32,
    /// Thread or child process.
    pub isolation: Isolation,
}

impl Default for Demand {
    fn default() -> Self {
        Demand {
            memory_bytes: 16 << 20,
            threads: 1,
            isolation: Isolation::Thread,
        }
    }
}

/// A file of a tool that an action really uses.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolFile {
    /// Tool name in the plan: `qnn`.
    pub tool: String,
    /// File name: `libQnnHtp.so`.
    pub name: String,
    /// Its bytes.
    pub content: Content,
}

/// One part of a stage, ready to become an action. Its name is no part of the key.
#[derive(Clone, Debug)]
pub struct WorkOrder {
    /// Prefix of its outputs in the manifest; empty for a stage with a single order.
    pub name: String,
    /// Parameters resolved for this part.
    pub params: Value,
    /// What it reads.
    pub inputs: BTreeMap<String, Part>,
    /// The tool files it loads.
    pub tools: Vec<ToolFile>,
    /// See [`Action::origin`].
    pub origin: Option<String>,
    /// What it needs while it runs.
    pub demand: Demand,
    /// What to do where that is too much, the mildest first.
    pub smaller: Vec<Smaller>,
}

/// A way to have the same work done with less memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smaller {
    /// What its largest action would need.
    pub memory_bytes: u64,
    /// What to write in the plan: "give stage `graph` `shards = 4`".
    pub advice: String,
}

impl WorkOrder {
    /// The action that this order asks of stage `spec`.
    pub fn into_action(self, spec: &StageSpec) -> Action {
        let mut tools: BTreeMap<String, BTreeMap<String, Content>> = BTreeMap::new();
        for file in self.tools {
            tools
                .entry(file.tool)
                .or_default()
                .insert(file.name, file.content);
        }
        let inputs = self.inputs.into_iter().map(|(name, part)| {
            let Content { digest, window } = part.content;
            (
                name,
                Ingredient {
                    digest,
                    window,
                    facts: part.facts,
                },
            )
        });
        Action {
            stage: spec.kind.into(),
            version: spec.version,
            params: self.params,
            inputs: inputs.collect(),
            tools,
            origin: self.origin,
        }
    }
}

/// How it is known that an earlier result is what its action gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By its key: whoever put it ran the action.
    Key,
    /// Its only output has this SHA-256, in 64 lower-case hexadecimal digits.
    Sha256(String),
    /// Its only output has this digest.
    Digest(Digest),
    /// It has outputs of these names and no others; `NAME/` stands for at least one in that folder.
    Outputs(Vec<String>),
    /// By a note that it ran for this very cache: its bytes do not tell.
    Own,
}

/// A stage kind, as the engine sees it. Authors write a [`TypedStage`](super::TypedStage) instead.
pub trait Stage: Send + Sync {
    /// What it is.
    fn spec(&self) -> &StageSpec;

    /// The JSON Schema of its parameters; an empty one allows everything.
    fn schema(&self) -> Schema {
        Schema::default()
    }

    /// All that is wrong with `params` (the stage's table without input slots and what every stage
    /// may have), and the names of the tools that a stage with these parameters and these inputs
    /// needs, or [may](MAY_BE) need.
    fn check(
        &self,
        params: &Value,
        given: &[Given],
    ) -> std::result::Result<Vec<String>, Vec<ParamProblem>>;

    /// The files and folders of this machine that a stage with these parameters reads as they are.
    /// The engine gives their digests to `expand`, and sees to it that they do not change while
    /// its parts run.
    fn files(&self, _params: &Value) -> Result<Vec<PathBuf>> {
        Ok(vec![])
    }

    /// Whether what a stage with these parameters gives holds only for the moment, as a measurement
    /// on a device does: then it runs in every build.
    fn is_volatile(&self, _params: &Value) -> Result<bool> {
        Ok(false)
    }

    /// How an earlier result of an order with these parameters is known to be its own. A cache may
    /// have been filled by others.
    fn proof(&self, _order: &Value) -> Result<Proof> {
        Ok(Proof::Key)
    }

    /// The work orders, once every input is sealed. Pure: reads facts, never bytes.
    fn expand(&self, params: &Value, inputs: &Inputs) -> Result<Vec<WorkOrder>>;

    /// Does the work. May read only what the action declares.
    fn run(&self, action: &Action, job: &Job) -> Result<Outputs>;
}
