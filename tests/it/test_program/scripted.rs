//! The stage kind `scripted`: its parameter `do` selects what it does, in most cases a failure.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use kiln::action::{
    Action, Demand, Inputs, Isolation, Job, Outputs, ParamProblem, Part, PartName, Stage,
    StageSpec, WorkOrder,
};
use kiln::base::{CanonJson, Code, Problem, Result, hash_bytes};
use serde_json::{Value, json};

/// The stage kind.
pub struct Scripted;

impl Stage for Scripted {
    fn spec(&self) -> &StageSpec {
        &StageSpec {
            kind: "scripted",
            version: 3,
            summary: "",
            output: "file",
            inputs: &[],
            params: &["do", "argument"],
            keyed: &[],
            reaches_outside: false,
            measures: false,
        }
    }

    fn check(
        &self,
        _: &Value,
        _: &[kiln::action::InputStage],
    ) -> std::result::Result<Vec<String>, Vec<ParamProblem>> {
        Ok(vec![])
    }

    fn expand(&self, params: &Value, _: &Inputs) -> Result<Vec<WorkOrder>> {
        let demand = Demand {
            isolation: Isolation::Process,
            ..Demand::default()
        };
        Ok(vec![WorkOrder {
            name: String::new(),
            params: params.clone(),
            inputs: BTreeMap::new(),
            tools: vec![],
            origin: None,
            demand,
            smaller: vec![],
        }])
    }

    #[allow(clippy::zombie_processes)]
    fn run(&self, action: &Action, job: &Job) -> Result<Outputs> {
        let argument = || action.params["argument"].as_str().unwrap();
        match action.params["do"].as_str().unwrap() {
            "reverse" => {
                println!("a library prints to standard output");
                eprintln!("and to standard error");
                job.progress(1, 2, "B");
                job.progress(2, 2, "B");
                let reversed: Vec<u8> = job.read("clay")?.iter().rev().copied().collect();
                let part = job.write(&reversed, CanonJson::from(json!({"reversed": true})))?;
                return Ok(BTreeMap::from([(PartName::new("out").unwrap(), part)]));
            }
            "copy by path" => {
                let bytes = fs::read(job.path("clay")?).unwrap();
                let part = job.write(&bytes, CanonJson::default())?;
                return Ok(BTreeMap::from([(PartName::new("out").unwrap(), part)]));
            }
            "claim a missing blob" => {
                let part = Part {
                    content: hash_bytes(b"never put").into(),
                    facts: CanonJson::default(),
                };
                return Ok(BTreeMap::from([(PartName::new("out").unwrap(), part)]));
            }
            "fail" => {
                return Err(Problem::new(Code::of("kiln::scripted"), "refused").help("ask nicely"));
            }
            "panic" => panic!("a panic message"),
            "abort" => {
                eprintln!("{}end of stderr", "noise ".repeat(10_000));
                std::process::abort();
            }
            "exit" => std::process::exit(7),
            "download, then fail" => {
                fs::write(job.partial("https://host/file")?.join("download"), "ha").unwrap();
                return Err(Problem::new(
                    Code::of("kiln::scripted"),
                    "the line went dead",
                ));
            }
            "resume" => {
                let path = job.partial("https://host/file")?.join("download");
                let partial = fs::read(path).unwrap_or_default();
                let part = job.write(&partial, CanonJson::default())?;
                return Ok(BTreeMap::from([(PartName::new("out").unwrap(), part)]));
            }
            "hang" => {
                let helper = Command::new("sleep").arg("1000").spawn().unwrap();
                fs::write(
                    argument(),
                    format!("{} {}", std::process::id(), helper.id()),
                )
                .unwrap();
                job.progress(1, 0, "B");
                sleep(Duration::from_secs(1000));
            }
            other => panic!("cannot {other}"),
        }
        Ok(Outputs::new())
    }
}
