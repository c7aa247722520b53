//! A stage kind whose behaviour is read from the plan's text: one stage a line, `NAME: key=value
//! ...`.
//!
//! `from=A,B` inputs; `parts=N` orders `0`, `1` ...; `threads=N`, `memory=N` their demand,
//! `smaller=N` less of it; `fail=I` order I fails; `panic=expand|run`; `seed=S` stands in for the
//! stage's name in the actions, so that equal stages tie; `tied=1` makes all orders one action;
//! `slow=1` works until it is cancelled; `v=X` is just a parameter; `process=1` runs in a
//! process; `flaky=K` fails K times where somebody counts the attempts;
//! `retries=N`, `timeout=MS` and `file=PATH` are what they are for every kind; `write=1` writes to
//! that file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln::action::{
    Action, Demand, Inputs, Isolation, Job, Outputs, Part, PartName, Proof, Registry, Smaller,
    Stage, StageSpec, WorkOrder,
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
    let stages = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(stage)
        .collect();
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
            params.insert(
                key.into(),
                value
                    .parse::<u64>()
                    .map_or(json!(value), |number| json!(number)),
            );
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
        Ok(params["file"]
            .as_str()
            .map(PathBuf::from)
            .into_iter()
            .collect())
    }

    fn expand(&self, params: &Value, inputs: &Inputs) -> Result<Vec<WorkOrder>> {
        assert!(params["panic"] != "expand", "told to");
        let mut read = BTreeMap::new();
        for (producer, manifest) in inputs.many("from") {
            read.extend(
                manifest
                    .parts
                    .iter()
                    .map(|(name, part)| (format!("{producer}/{name}"), part.clone())),
            );
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
            advice: format!("knead {memory_bytes} B at a time"),
        };
        let smaller: Vec<_> = number(params, "smaller")
            .map(|least| vec![less(least + 50), less(least)])
            .unwrap_or_default();
        let order = |index: u64| {
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
            WorkOrder {
                name: index.to_string(),
                params: resolved,
                inputs: read.clone(),
                tools: vec![],
                origin: None,
                demand,
                smaller: smaller.clone(),
            }
        };
        Ok((0..number(params, "parts").unwrap_or(1))
            .map(order)
            .collect())
    }

    fn run(&self, _: &Action, _: &Job) -> Result<Outputs> {
        unreachable!("`outputs` stands in for it")
    }
}

/// What a run of `action` gives: one part, whose bytes are the action's own text.
pub fn outputs(action: &Action) -> Result<Outputs> {
    assert!(action.params["panic"] != "run", "told to");
    if action.params["fail"] == true {
        return Err(Problem::new(Code::of("test::failed"), "told to"));
    }
    let part = Part {
        content: hash_bytes(action.canonical_text().as_bytes()).into(),
        facts: CanonJson::default(),
    };
    Ok([(PartName::new("out")?, part)].into())
}

/// What the driver makes of a stage.
pub fn tasks(stage: &PlannedStage, inputs: &Inputs) -> Result<Vec<Task>> {
    let task = |order: WorkOrder| {
        let (name, demand, smaller) = (
            order.name.clone(),
            order.demand,
            order.smaller.clone().into(),
        );
        let action = order.into_action(&SPEC);
        Task {
            name,
            key: action.key(),
            action: Arc::new(action),
            demand,
            smaller,
            is_volatile: false,
            proof: Proof::Key,
        }
    };
    Ok(Fake
        .expand(&stage.params, inputs)?
        .into_iter()
        .map(task)
        .collect())
}
