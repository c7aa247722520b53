//! kiln with three small stage kinds of its own, as a program: for what is seen only from outside,
//! and from no real stage.
//!
//! `fetch` brings a file that is not pinned, so that it may change under the plan; `make` does what
//! its table says, and `gauge` the same, but what it gives are figures.

use std::collections::BTreeMap;
use std::env::{self, current_exe};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;
use kiln::action::{
    Action, Demand, InputSpec, Inputs, Job, Outputs, ParamProblem, PartName, Registry, Stage,
    StageSpec, WorkOrder,
};
use kiln::base::{CanonJson, Result};
use kiln::cli::Call;
use serde_json::{Value, json};

const CALL: &str = "WORKSHOP_CALL";
/// The version of `make`.
pub const VERSION: &str = "WORKSHOP_VERSION";

/// What a test called `program` must be.
pub fn program() {
    let Ok(call) = env::var(CALL) else { return };
    let call = Call::parse_from(serde_json::from_str::<Vec<String>>(&call).unwrap());
    let exit = call
        .run(&registry())
        .unwrap_or_else(|failed| call.common.report(&failed));
    std::process::exit(exit as i32);
}

/// Calls the program in `folder`, with variables of the environment.
pub fn kiln(folder: &Path, call: &str, environment: &[(&str, &str)]) -> (i32, String, String) {
    let words: Vec<&str> = ["kiln"]
        .into_iter()
        .chain(call.split_whitespace())
        .collect();
    let mut program = Command::new(current_exe().unwrap());
    program
        .args(["program", "--exact", "--nocapture"])
        .current_dir(folder);
    for variable in ["GITHUB_ACTIONS", "SOURCE_DATE_EPOCH", "KILN_CACHE", VERSION] {
        program.env_remove(variable);
    }
    let output = program
        .env(CALL, json!(words).to_string())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let out = text(output.stdout);
    let said = out
        .split_once("running 1 test\n")
        .map_or("", |(_, said)| said);
    (
        output.status.code().unwrap(),
        said.into(),
        text(output.stderr),
    )
}

fn registry() -> Registry {
    let version = env::var(VERSION).map_or(1, |version| version.parse().unwrap());
    let make = StageSpec { version, ..MAKE };
    let gauge = StageSpec {
        kind: "gauge",
        measures: true,
        ..make.clone()
    };
    Registry::new(vec![
        Box::new(Fetch),
        Box::new(Make { spec: make }),
        Box::new(Make { spec: gauge }),
    ])
}

const FETCH: StageSpec = StageSpec {
    kind: "fetch",
    version: 1,
    summary: "",
    gives: "thing",
    inputs: &[],
    params: &["url", "sha256", "unpack"],
    keyed: &[],
    reaches_outside: true,
    measures: false,
};

const MAKE: StageSpec = StageSpec {
    kind: "make",
    version: 1,
    summary: "",
    gives: "thing",
    inputs: &[InputSpec {
        name: "from",
        meaning: "",
        accepts: &["thing"],
        required: false,
        many: true,
    }],
    params: &["text", "parts", "file", "oven", "random", "times", "blind"],
    keyed: &[],
    reaches_outside: false,
    measures: false,
};

struct Fetch;

fn file_of(params: &Value) -> PathBuf {
    params["url"]
        .as_str()
        .and_then(|url| url.strip_prefix("file:"))
        .unwrap()
        .into()
}

fn order(name: &str, params: Value) -> WorkOrder {
    let name = name.into();
    let (inputs, demand) = (BTreeMap::new(), Demand::default());
    WorkOrder {
        name,
        params,
        inputs,
        tools: vec![],
        origin: None,
        demand,
        smaller: vec![],
    }
}

impl Stage for Fetch {
    fn spec(&self) -> &StageSpec {
        &FETCH
    }

    fn check(&self, _: &Value, _: &[&str]) -> std::result::Result<Vec<String>, Vec<ParamProblem>> {
        Ok(vec![])
    }

    fn files(&self, params: &Value) -> Result<Vec<PathBuf>> {
        Ok(vec![file_of(params)])
    }

    fn expand(&self, params: &Value, inputs: &Inputs) -> Result<Vec<WorkOrder>> {
        let file = file_of(params);
        let name = file.file_name().unwrap().to_str().unwrap();
        let origin = Some(file.to_str().unwrap().into());
        Ok(vec![WorkOrder {
            origin,
            ..order("", json!({"file": name, "digest": inputs.file(&file)?}))
        }])
    }

    fn run(&self, action: &Action, job: &Job) -> Result<Outputs> {
        let bytes = fs::read(job.origin()?).unwrap();
        let name = PartName::new(action.params["file"].as_str().unwrap())?;
        Ok([(name, job.write(&bytes, CanonJson::default())?)].into())
    }
}

struct Make {
    spec: StageSpec,
}

impl Stage for Make {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn check(
        &self,
        params: &Value,
        _: &[&str],
    ) -> std::result::Result<Vec<String>, Vec<ParamProblem>> {
        Ok(if params["oven"] == true {
            vec!["oven".into()]
        } else {
            vec![]
        })
    }

    fn files(&self, params: &Value) -> Result<Vec<PathBuf>> {
        Ok(params["file"]
            .as_str()
            .map(PathBuf::from)
            .into_iter()
            .collect())
    }

    fn expand(&self, params: &Value, inputs: &Inputs) -> Result<Vec<WorkOrder>> {
        let mut made = json!({"text": params["text"], "random": params["random"], "times": params["times"],
            "blind": params["blind"]});
        for digest in inputs.files.values() {
            made["digest"] = json!(digest);
        }
        let given = inputs.many("from").iter().flat_map(|(giver, manifest)| {
            manifest
                .parts
                .iter()
                .map(move |(name, part)| (format!("{giver}/{name}"), part.clone()))
        });
        let given: BTreeMap<_, _> = given.collect();
        let tools = if params["oven"] == true {
            inputs.tool_files("oven", &["oven.so"])?
        } else {
            vec![]
        };
        let parts: Vec<String> =
            serde_json::from_value(params["parts"].clone()).unwrap_or(vec![String::new()]);
        let order = |name: &String| {
            let mut made = made.clone();
            made["part"] = json!(name);
            WorkOrder {
                inputs: given.clone(),
                tools: tools.clone(),
                ..order(name, made)
            }
        };
        Ok(parts.iter().map(order).collect())
    }

    fn run(&self, action: &Action, job: &Job) -> Result<Outputs> {
        let text = |key: &str| action.params[key].as_str().unwrap_or_default().to_string();
        let mut bytes = format!("{} {}\n", text("text"), text("part")).into_bytes();
        bytes = bytes.repeat(action.params["times"].as_u64().unwrap_or(1) as usize);
        let blind = action.params["blind"] == true;
        for (name, _) in job.inputs().filter(|_| !blind) {
            bytes.extend_from_slice(&job.read(name)?);
        }
        if action.params["random"] == true {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_nanos();
            bytes.extend_from_slice(now.to_string().as_bytes());
        }
        Ok([(
            PartName::new("out")?,
            job.write(&bytes, CanonJson::default())?,
        )]
        .into())
    }
}

/// A plan for the workshop.
pub const SHOP: &str = r#"
[plan]
name = "shop"
[vars]
text = "pot"
[tools]
oven = { url = "file:oven.so" }
[stage.clay]
kind = "fetch"
url = "file:clay.txt"
[stage.pots]
kind = "make"
from = "clay"
text = "${text}"
parts = ["a", "b/c"]
keep = ["b"]
[stage.ware]
kind = "make"
from = "pots"
text = "ware"
oven = true
[stage.bill]
kind = "make"
text = "bill"
times = 20000
"#;

/// A folder with that plan and what it reads.
pub struct Shop(tempfile::TempDir);

impl Shop {
    pub fn open() -> Shop {
        let shop = Shop(tempfile::tempdir().unwrap());
        for (name, text) in [("shop.toml", SHOP), ("oven.so", "hot"), ("clay.txt", "wet")] {
            shop.write(name, text);
        }
        shop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// What a call says, its folder called HERE.
    pub fn kiln(&self, call: &str, environment: &[(&str, &str)]) -> (i32, String, String) {
        let (code, out, errors) = kiln(self.0.path(), call, environment);
        (
            code,
            out.replace(self.0.path().to_str().unwrap(), "HERE"),
            errors,
        )
    }

    /// What a call says that must succeed.
    pub fn done(&self, call: &str) -> String {
        let (code, out, errors) = self.kiln(call, &[]);
        assert_eq!(code, 0, "{call}: {out}{errors}");
        out
    }
}

/// `text` with every digest as `b3:`.
pub fn plain(text: &str) -> String {
    let mut pieces = text.split("b3:");
    let first = pieces.next().unwrap_or_default().to_string();
    pieces.fold(first, |out, piece| {
        let rest = piece.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        let size = rest
            .strip_prefix('/')
            .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        out + "b3:" + size.unwrap_or(rest)
    })
}
