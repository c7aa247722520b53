//! A stage kind as the engine uses it: a specification, a check, a pure expansion and a run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use schemars::Schema;
use serde_json::{Map, Value};

use super::{Action, ActionInput, ArtifactKind, Content, Inputs, Job, Outputs, Part, ToolFile};
use crate::base::{Digest, Problem, Result};

/// The name, inputs and output of a stage kind.
#[derive(Clone, Debug)]
pub struct StageSpec {
    /// The word in `kind = "..."`.
    pub kind: &'static str,
    /// Increased when the same action would produce other bytes.
    pub version: u32,
    /// One line for people.
    pub summary: &'static str,
    /// The kind of artifact it produces.
    pub output: ArtifactKind,
    /// Its input slots: parameters whose value names a stage.
    pub inputs: &'static [InputSpec],
    /// The names of its other parameters, for "did you mean".
    pub params: &'static [&'static str],
    /// The parameters that are tables with stage names as keys, each with the slot of these stages.
    pub keyed: &'static [(&'static str, &'static str)],
    /// Whether it uses something that may fail temporarily: the network.
    pub reaches_outside: bool,
    /// Whether its output has floating-point measurements, whose last digits depend on the
    /// processor.
    pub measures: bool,
}

/// In [`InputSpec::accepts`]: any artifact.
pub const ANY: ArtifactKind = "*";

/// A suffix of the name of a tool that is loaded only if the plan has it and the inputs need it.
pub const OPTIONAL_TOOL: char = '?';

/// One input slot.
#[derive(Clone, Debug)]
pub struct InputSpec {
    /// The parameter's name.
    pub name: &'static str,
    /// One line for people.
    pub meaning: &'static str,
    /// The artifacts it accepts.
    pub accepts: &'static [ArtifactKind],
    /// Whether the plan must set it.
    pub required: bool,
    /// Whether it is a list of stages.
    pub many: bool,
}

impl InputSpec {
    /// Whether an artifact of this kind may be used for the slot.
    pub fn is_compatible(&self, artifact: ArtifactKind) -> bool {
        self.accepts.contains(&artifact) || self.accepts.contains(&ANY)
    }
}

/// A stage in an input slot of another stage.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputStage {
    /// The slot.
    pub slot: String,
    /// Its id.
    pub stage: String,
    /// The kind of artifact it produces.
    pub artifact: ArtifactKind,
    /// Its table in the plan, which may have mistakes.
    pub table: Map<String, Value>,
}

impl InputStage {
    /// Whether one of `inputs` is in `slot`.
    pub fn fills(inputs: &[InputStage], slot: &str) -> bool {
        inputs.iter().any(|input| input.slot == slot)
    }

    /// Whether its table sets `key` to `word`.
    pub fn has(&self, key: &str, word: &str) -> bool {
        self.table.get(key).is_some_and(|value| value == word)
    }
}

/// A mistake in the parameters: which one, what is wrong with it.
#[derive(Clone, Debug)]
pub struct ParamProblem {
    /// Path of keys and indices in the stage's table, like `override/0/scheme`; empty for the
    /// table.
    pub path: String,
    /// What is wrong and how to fix it; `plan` adds the labels.
    pub problem: Problem,
}

/// Where an action runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// On a thread of the engine.
    #[default]
    Thread,
    /// In a child process: everything that loads a vendor library.
    Process,
}

/// What an action needs while it runs. Not part of the key: it must not change bytes.
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

/// One part of a stage, from which an action is made. Its name is not part of the key.
#[derive(Clone, Debug)]
pub struct WorkOrder {
    /// Prefix of its outputs in the manifest. At most one order of a stage has none.
    pub name: String,
    /// Parameters resolved for this part.
    pub params: Value,
    /// Its inputs.
    pub inputs: BTreeMap<String, Part>,
    /// The tool files it loads.
    pub tools: Vec<ToolFile>,
    /// See [`Action::origin`].
    pub origin: Option<String>,
    /// What it needs while it runs.
    pub demand: Demand,
    /// What to change if the demand is too large, the smallest change first.
    pub smaller: Vec<Smaller>,
}

/// A way to do the same work with less memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smaller {
    /// What its largest action would need.
    pub memory_bytes: u64,
    /// What to write in the plan: "give stage `graph` `shards = 4`".
    pub advice: String,
}

impl WorkOrder {
    /// The action of this order, for the stage kind `spec`.
    pub fn into_action(self, spec: &StageSpec) -> Action {
        let mut tools: BTreeMap<String, BTreeMap<String, Content>> = BTreeMap::new();
        for file in self.tools {
            tools
                .entry(file.tool)
                .or_default()
                .insert(file.name, file.content);
        }
        let mut inputs = BTreeMap::new();
        for (name, part) in self.inputs {
            let Content { digest, window } = part.content;
            let facts = part.facts;
            inputs.insert(
                name,
                ActionInput {
                    digest,
                    window,
                    facts,
                },
            );
        }
        Action {
            stage: spec.kind.into(),
            version: spec.version,
            params: self.params,
            inputs,
            tools,
            origin: self.origin,
        }
    }
}

/// What proves that a result in the cache is the result of its action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The key: the result was put by a process that ran the action.
    Key,
    /// The only output has this SHA-256, in 64 lower-case hexadecimal digits.
    Sha256(String),
    /// The only output has this digest.
    Digest(Digest),
    /// The outputs have these names and no others; `NAME/` stands for at least one in that folder.
    Outputs(Vec<String>),
    /// A note that the action ran for this cache: the bytes of the result prove nothing.
    LocalRun,
}

/// A stage kind, as the engine sees it. Authors write a [`TypedStage`](super::TypedStage) instead.
pub trait Stage: Send + Sync {
    /// Its specification.
    fn spec(&self) -> &StageSpec;

    /// The JSON Schema of its parameters; an empty schema allows everything.
    fn schema(&self) -> &Schema {
        static ANY: LazyLock<Schema> = LazyLock::new(Schema::default);
        &ANY
    }

    /// Checks `params`: the stage's table without input slots and common parameters. Returns all
    /// problems, or the names of the tools that a stage with these parameters and inputs needs, or
    /// [may](OPTIONAL_TOOL) need.
    fn check(
        &self,
        params: &Value,
        inputs: &[InputStage],
    ) -> std::result::Result<Vec<String>, Vec<ParamProblem>>;

    /// The local files and folders that a stage with these parameters reads. The engine passes
    /// their digests to `expand`, and checks that they do not change while its parts run.
    fn files(&self, _params: &Value) -> Result<Vec<PathBuf>> {
        Ok(vec![])
    }

    /// Whether the output of a stage with these parameters may differ in each run, like a
    /// measurement on a device. Then it runs in every build.
    fn is_volatile(&self, _params: &Value) -> Result<bool> {
        Ok(false)
    }

    /// What proves that a result in the cache belongs to an order with these parameters. The cache
    /// may contain results from other machines.
    fn proof(&self, _order: &Value) -> Result<Proof> {
        Ok(Proof::Key)
    }

    /// Refuses what must fail, by the inputs that are complete so far; slots of others are empty.
    /// The engine asks as soon as one more is complete, so that nothing runs in vain. Pure, as
    /// `expand`, which may refuse more.
    fn foresee(&self, _params: &Value, _inputs: &Inputs) -> Result<()> {
        Ok(())
    }

    /// The work orders, once all inputs are complete. Pure: reads facts, never bytes.
    fn expand(&self, params: &Value, inputs: &Inputs) -> Result<Vec<WorkOrder>>;

    /// Runs the action. May read only what the action declares.
    fn run(&self, action: &Action, job: &Job) -> Result<Outputs>;
}
