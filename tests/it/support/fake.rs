//! A fake stage kind whose behaviour is set by the plan text: one stage per line, `NAME: key=value
//! ...`.
//!
//! | key | effect |
//! |---|---|
//! | `from=A,B` | the inputs |
//! | `parts=N` | orders `0`, `1`, ... |
//! | `threads=N`, `memory=N` | the demand of each order |
//! | `smaller=N` | suggestions that reduce the memory, down to N |
//! | `fail=I` | order I fails |
//! | `flaky=K` | fails K times, if the executor counts the attempts |
//! | `refuses=A` | must fail by the input of A |
//! | `panic=expand` or `run` | panics there |
//! | `seed=S` | replaces the stage name in the actions, so that stages can share actions |
//! | `tied=1` | all orders are the same action |
//! | `slow=1` | runs until it is cancelled |
//! | `process=1` | runs in a process |
//! | `write=1` | writes to the file of `file=PATH` |
//! | `v=X` | a parameter without effect |
//!
//! `retries=N`, `timeout=MS` and `file=PATH` are as for real kinds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kiln::action::{
    Action, Demand, Inputs, Isolation, Job, Outputs, Part, PartName, Registry, Smaller, Stage,
    StageSpec, WorkOrder,
};
use kiln::base::{CanonJson, Code, Problem, Result, hash_bytes};
use kiln::engine::Task;
use kiln::plan::{Keep, Plan, PlannedStage, StageId};
use serde_json::{Map, Value, json};

pub struct Fake;

const SPEC: StageSpec = StageSpec {
    kind: "fake",
    version: 1,
    summary: "",
    output: "thing",
    inputs: &[],
    params: &[],
    keyed: &[],
    reaches_outside: false,
    measures: false,
};

pub fn registry() -> Registry {
    Registry::new(vec![Box::new(Fake)])
}

pub fn plan(text: &str) -> Plan {
    let mut stages = vec![];
    for line in text.lines() {
        if !line.trim().is_empty() {
            stages.push(stage(line.trim()));
        }
    }
    Plan {
        name: "test".into(),
        stages,
        texts: vec![],
    }
}

fn stage(line: &str) -> PlannedStage {
    let (name, rest) = line.split_once(':').unwrap();
    let mut params = Map::from_iter([("seed".to_string(), json!(name))]);
    let mut slots = BTreeMap::new();
    let (mut retries, mut timeout) = (0, None);
    for word in rest.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap();
        if key == "from" {
            slots.insert(
                "from".to_string(),
                value
                    .split(',')
                    .map(|producer| StageId(producer.into()))
                    .collect(),
            );
        } else if key == "retries" {
            retries = value.parse().unwrap();
        } else if key == "timeout" {
            timeout = Some(Duration::from_millis(value.parse().unwrap()));
        } else {
            let value = match value.parse::<u64>() {
                Ok(number) => json!(number),
                Err(_) => json!(value),
            };
            params.insert(key.into(), value);
        }
    }
    let (id, name, kind) = (
        StageId(name.trim().into()),
        name.trim().into(),
        "fake".into(),
    );
    let (params, tools) = (params.into(), BTreeMap::new());
    PlannedStage {
        id,
        name,
        kind,
        params,
        slots,
        tools,
        keep: Keep::Nothing,
        timeout,
        retries,
        optional: false,
        at: 0..0,
    }
}

fn number(params: &Value, key: &str) -> Option<u64> {
    params.get(key)?.as_u64()
}

impl Stage for Fake {
    fn spec(&self) -> &StageSpec {
        &SPEC
    }

    fn check(
        &self,
        _: &Value,
        _: &[kiln::action::InputStage],
    ) -> std::result::Result<Vec<String>, Vec<kiln::action::ParamProblem>> {
        Ok(vec![])
    }

    fn files(&self, params: &Value) -> Result<Vec<PathBuf>> {
        match params["file"].as_str() {
            Some(file) => Ok(vec![file.into()]),
            None => Ok(vec![]),
        }
    }

    fn foresee(&self, params: &Value, inputs: &Inputs) -> Result<()> {
        let refused = params["refuses"].as_str().unwrap_or_default();
        for (producer, _) in inputs.many("from") {
            if producer == refused {
                return Err(Problem::new(Code::of("test::refused"), "as the plan says"));
            }
        }
        Ok(())
    }

    fn expand(&self, params: &Value, inputs: &Inputs) -> Result<Vec<WorkOrder>> {
        assert!(params["panic"] != "expand", "as the plan says");
        let mut read = BTreeMap::new();
        for (producer, manifest) in inputs.many("from") {
            for (name, part) in &manifest.parts {
                read.insert(format!("{producer}/{name}"), part.clone());
            }
        }
        let demand = Demand {
            memory_bytes: number(params, "memory").unwrap_or(1),
            threads: number(params, "threads").unwrap_or(1) as u32,
            isolation: if params.get("process").is_some() {
                Isolation::Process
            } else {
                Isolation::Thread
            },
        };
        let less = |memory_bytes| Smaller {
            memory_bytes,
            advice: format!("process {memory_bytes} B at a time"),
        };
        let smaller = match number(params, "smaller") {
            Some(least) => vec![less(least + 50), less(least)],
            None => vec![],
        };
        let mut orders = vec![];
        for index in 0..number(params, "parts").unwrap_or(1) {
            let number_in_action = if params.get("tied").is_some() {
                0
            } else {
                index
            };
            let mut resolved = json!({"seed": params["seed"], "number": number_in_action});
            for key in ["v", "slow", "panic", "write", "flaky"] {
                if let Some(value) = params.get(key) {
                    resolved[key] = value.clone();
                }
            }
            for (path, digest) in &inputs.files {
                resolved["file"] = json!(path);
                resolved["digest"] = json!(digest);
            }
            if number(params, "fail") == Some(index) {
                resolved["fail"] = json!(true);
            }
            orders.push(WorkOrder {
                name: index.to_string(),
                params: resolved,
                inputs: read.clone(),
                tools: vec![],
                origin: None,
                demand,
                smaller: smaller.clone(),
            });
        }
        Ok(orders)
    }

    fn run(&self, _: &Action, _: &Job) -> Result<Outputs> {
        unreachable!("tests call `outputs` instead")
    }
}

/// The outputs of `action`: one part, whose bytes are the text of the action.
pub fn outputs(action: &Action) -> Result<Outputs> {
    assert!(action.params["panic"] != "run", "as the plan says");
    if action.params["fail"] == true {
        return Err(Problem::new(Code::of("test::failed"), "told to"));
    }
    let part = Part {
        content: hash_bytes(action.canonical_text().as_bytes()).into(),
        facts: CanonJson::default(),
    };
    Ok([(PartName::new("out")?, part)].into())
}

/// The tasks of a stage, as the driver creates them.
pub fn tasks(stage: &PlannedStage, inputs: &Inputs) -> Result<Vec<Task>> {
    let mut tasks = vec![];
    for order in Fake.expand(&stage.params, inputs)? {
        tasks.push(Task::new(order, &Fake, false)?);
    }
    Ok(tasks)
}
